"""Help and a mistake in the configuration come at once: nothing that takes seconds to import is imported for them.

Asserted on what is imported rather than by a clock. All commands run in one process, checked after each.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = "recipes/miniature.yaml"
SLOW = ("torch", "transformers", "accelerate", "datasets", "pandas", "sympy", "math_verify", "scipy", "matplotlib")
MISTAKES = [
    ["train", "none.yaml"],
    ["train", RECIPE, "optimizer.lr=1"],
    ["train", RECIPE, "steps=-1"],
    ["train", RECIPE, "method=lufy"],
    ["train", RECIPE, "reward.kind=nonsense"],
    ["train", RECIPE, "data.train=none.jsonl"],
    ["train", RECIPE, "model=./no/model"],
    ["train", RECIPE, "model=recipes"],
    ["train", RECIPE, "model=./no/model", "--processes", "2"],
    ["train", RECIPE, "evaluation.benchmarks=miniature/hrad", "evaluation.watch=[]"],
    ["compare", RECIPE, "--methods", "luffy,stf"],
    ["compare", "none.yaml"],
    ["compare", RECIPE, "reward.kind=nonsense"],
    ["compare", RECIPE, "model=./no/model"],
    ["eval", "miniature", "-b", "miniature/sort"],
    ["eval", "miniature", "-b", "gsm8k", "--set", "reward.kind=nonsense"],
    ["eval", "miniature", "./no/model", "-b", "miniature/short"],
    ["eval"],
    ["data", "check", "none.jsonl"],
    ["data", "show", "none.jsonl"],
    ["data", "show", "miniature", "--model", "./no/model"],
    ["data", "prepare", "nonsense"],
    ["data", "collect", "none.jsonl", "--endpoint", "http://localhost:1/v1", "--model", "m", "--out", "none.out"],
    ["report", "no/such/run"],
    ["config", RECIPE, "optimizer.lr=1"],
    ["nonsense"],
]
FINE = [["methods"], ["config"], ["config", RECIPE], ["eval", "--list"]]
PROGRAM = """
import json, sys
from luffy import cli

found = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["luffy", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        status = ended.code or 0
    found.append([status, sorted(set(json.loads(sys.argv_slow)) & set(sys.modules))])
print("FOUND", json.dumps(found))
"""


def all_commands(group, path=()):
    """The words of every command there is."""
    yield list(path)
    for name, command in getattr(group, "commands", {}).items():
        yield from all_commands(command, (*path, name))


@pytest.fixture(scope="module")
def found():
    """What each command line ended with and had imported: ' '.join(arguments) -> (status, modules)."""
    import typer

    from luffy.cli import application

    helps = [[*words, "--help"] for words in all_commands(typer.main.get_command(application))]
    assert len(helps) >= 12
    lines = [*helps, *FINE, *MISTAKES]
    program = PROGRAM.replace("sys.argv_slow", repr(json.dumps(SLOW)))
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    return dict(zip(map(" ".join, lines), json.loads(last.removeprefix("FOUND ")), strict=True))


def test_no_help_imports_what_is_slow(found):
    helps = {line: outcome for line, outcome in found.items() if line.endswith("--help")}
    assert {"--help", "train --help", "data check --help"} <= helps.keys()
    assert helps == {line: [0, []] for line in helps}


@pytest.mark.parametrize("arguments", FINE, ids=" ".join)
def test_a_list_imports_nothing_slow(found, arguments):
    assert found[" ".join(arguments)] == [0, []]


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_told_before_anything_slow_is_imported(found, arguments):
    status, imported = found[" ".join(arguments)]
    assert status in (1, 2)
    assert imported == []
