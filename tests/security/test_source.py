"""What the source must not contain: pickles, code from data, YAML that builds objects, unescaped pages."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("src/luffy/**/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py")])
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads"}
TESTS_WHETHER_A_FUNCTION_CAN_BE_SENT = "src/luffy/reward/pool.py"  # to our own workers: it writes, and reads nothing


def called(node):
    """The dotted name of what is called, as far as it is one."""
    return ast.unparse(node.func)


def violations(tree, name):
    """Each thing in the syntax tree of a file that must not be there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if PICKLING & {one.partition(".")[0] for one in names} and name != TESTS_WHETHER_A_FUNCTION_CAN_BE_SENT:
                yield node.lineno, f"imports {names}"
        if not isinstance(node, ast.Call):
            continue
        function, given = called(node), {one.arg: ast.unparse(one.value) for one in node.keywords}
        if function in RUNS_TEXT:
            yield node.lineno, function
        if function == "torch.load" and given.get("weights_only") != "True":
            yield node.lineno, "torch.load without weights_only=True"
        if function in ("torch.save", "numpy.save", "np.save"):
            yield node.lineno, f"{function}: use safetensors"
        if function in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
            yield node.lineno, "numpy.load of pickles"
        if (
            function.startswith("yaml.")
            and function.count(".") == 1
            and "load" in function
            and function != "yaml.safe_load"
        ):
            loader = given.get("Loader", ast.unparse(node.args[1]) if len(node.args) > 1 else "")
            if loader != "_StrictLoader":
                yield node.lineno, f"{function} with {loader or 'no'} loader"
        if given.get("shell") == "True":
            yield node.lineno, "a shell"
        if given.get("trust_remote_code", "False") not in ("False", "policy.trust_remote_code", "trust_remote_code"):
            yield node.lineno, "remote code without being asked"
        if function.endswith("Environment") and "jinja" in function and "autoescape" not in given:
            yield node.lineno, "a page without escaping"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_dangerous(path):
    name = str(path.relative_to(ROOT))
    assert list(violations(ast.parse(path.read_text(encoding="utf-8")), name)) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "eval(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(state, path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "yaml.full_load(text)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "jinja2.Environment(loader=loader)",
    ],
)
def test_the_check_itself_sees_it(code):
    assert list(violations(ast.parse(code), "some/file.py"))


def test_the_strict_yaml_loader_is_a_safe_one():
    import yaml

    from luffy.config.reading import _StrictLoader

    assert issubclass(_StrictLoader, yaml.SafeLoader)
    assert not any(issubclass(one, yaml.FullLoader | yaml.UnsafeLoader) for one in _StrictLoader.__mro__)
