"""What `luffy doctor` finds: on a machine that is in order, and on one where something is missing."""

import importlib.util
import io
import os
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from rich.console import Console

from luffy.doctor import machine, packages, trial
from luffy.doctor.examination import examine
from luffy.doctor.findings import Finding
from luffy.doctor.machine import find_machine
from luffy.doctor.packages import OPTIONS, check_library, constraint_versions, find_options
from luffy.doctor.recipes import find_needs, find_recipes
from luffy.doctor.show import findings_table, fold_libraries
from luffy.errors import ModelError
from luffy.planning.machine import usable_cores

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def by_name(findings):
    return {one.name: one for one in findings}


# -- the machine


def test_the_machine_is_described():
    found = by_name(find_machine())
    assert set(found) >= {"Python", "system", "processor", "instructions", "memory", "disk, here", "disk, temporary"}
    assert str(usable_cores()) in found["processor"].found
    assert "GiB" in found["memory"].found


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_cores_are_those_that_this_process_may_use():
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


def test_an_old_python_and_a_full_machine_are_missing_something(monkeypatch):
    monkeypatch.setattr(machine.sys, "version_info", (3, 10, 2))
    monkeypatch.setattr(machine, "memory", lambda: (16.0, 0.3))
    monkeypatch.setattr(machine, "LEAST_DISK", 1e9)
    found = by_name(find_machine())
    assert found["Python"].state == found["memory"].state == found["disk, here"].state == "missing"
    assert found["Python"].remedy == "Python 3.11 or newer is needed"
    assert "another output=" in found["disk, here"].remedy


def test_the_oldest_python_is_that_of_the_package():
    assert PROJECT["requires-python"] == f">={'.'.join(map(str, machine.OLDEST_PYTHON))}"


# -- libraries


@pytest.mark.parametrize(
    ("have", "tested", "state", "remedy"),
    [
        (None, "2.13.0", "missing", "pip install 'torch>=2.9'"),
        ("2.8.1", "2.13.0", "missing", "needed: >=2.9. pip install 'torch>=2.9'"),
        ("2.13.0+cpu", "2.13.0", "fine", ""),
        ("2.10.0", "2.13.0", "fine", "tested with 2.13.0"),
        ("2.10.0", None, "fine", ""),
        ("of my own", None, "fine", "needed: >=2.9"),
    ],
)
def test_a_library_against_what_is_needed_and_tested(have, tested, state, remedy):
    finding = check_library(Requirement("torch>=2.9"), have, tested)
    assert (finding.state, finding.remedy) == (state, remedy)


def test_versions_that_were_tested_come_from_the_constraints():
    assert {"torch", "transformers", "pyyaml", "math-verify", "jinja2"} <= constraint_versions().keys()


def test_extras_named_to_the_user_exist(monkeypatch):
    monkeypatch.setattr(packages, "installed", lambda package: None)
    found = by_name(find_options())
    assert {one.state for one in found.values()} == {"optional"}
    extras = PROJECT["optional-dependencies"]
    for option in OPTIONS:
        assert option.needed_for in found[option.package].remedy
        _, bracket, extra = option.install.partition("[")
        if bracket:
            assert any(Requirement(line).name == option.package for line in extras[extra.rstrip("]'")])


def test_libraries_that_are_in_order_share_a_line():
    same = [Finding("libraries", name, "1") for name in "abc"]
    other = Finding("libraries", "old", "0", "missing", "newer")
    folded = fold_libraries([Finding("machine", "Python", "3"), same[0], other, *same[1:], Finding("trial", "t", "")])
    assert [one.name for one in folded] == ["Python", "3 in order", "old", "t"]
    assert folded[1].found == "a 1, b 1, c 1"


@pytest.mark.parametrize("width", [80, 200])
def test_names_that_differ_at_their_end_are_told_apart(width):
    names = [f"recipes/paper/a-model-with-a-long-name-{size}.yaml" for size in ("1.5b", "7b")]
    console = Console(file=io.StringIO(), width=width)
    console.print(findings_table([Finding("recipes", name, "x " * 60, "optional", "y " * 60) for name in names]))
    shown = console.file.getvalue()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= width


# -- recipes


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return path

    return write


def needs(path):
    return {one.name.removeprefix(f"{path}: "): one for one in find_needs([path])}


def test_the_miniature_needs_nothing_that_is_not_here():
    found = needs(ROOT / "recipes/miniature.yaml")
    assert {one.state for one in found.values()} == {"fine"}
    assert found["model"].found == "miniature, built in"


def test_what_a_recipe_lacks_is_named(recipe, monkeypatch, tmp_path):
    monkeypatch.setattr("luffy.doctor.recipes.find_spec", lambda name: None)
    path = recipe(
        f"model: {tmp_path}/none\ndata:\n  train: {tmp_path}/none.jsonl\nreward:\n  kind: reasoning_gym\n"
        "tracker: wandb\nevaluation:\n  engine: vllm\n"
    )
    found = needs(path)
    lacking = {name for name, one in found.items() if one.state == "missing"}
    assert lacking == {"model", "data", "verifier", "evaluation.engine"}
    assert found["tracker wandb"].state == "optional"
    assert found["verifier"].remedy == "pip install 'luffy-rl[reasoning-gym]'"


def test_a_model_too_large_for_the_memory(recipe, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)

    def of(model, gibibytes):
        monkeypatch.setattr("luffy.planning.devices.memory", lambda: (gibibytes, gibibytes))
        found = needs(recipe(f"model: {model}"))["memory"]
        return found.state, found.remedy.partition("=")[0]

    assert of("Qwen/Qwen2.5-0.5B-Instruct", 32.0) == ("fine", "")
    assert of("Qwen/Qwen2.5-1.5B-Instruct", 32.0) == ("missing", "It fits with policy.gradient_checkpointing")
    assert of("Qwen/Qwen2.5-7B-Instruct", 32.0) == (
        "missing",
        "An adapter in place of all weights fits, with adapter.rank",
    )
    assert of("Qwen/Qwen2.5-7B-Instruct", 2.0)[1].startswith("No setting makes it fit: ")
    assert "memory" not in needs(recipe("model: Some/Model-7B"))  # the hub is not asked


@pytest.mark.parametrize(
    ("files", "policy", "remedy"),
    [
        ({}, "", "config.json is missing"),
        ({"config.json": "{}"}, "", r"holds no weights (*.safetensors)"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "", "pytorch_model.bin is a pickle"),
        ({"config.json": "{}", "pytorch_model.bin": ""}, "policy: {allow_pickle: true}", None),
        ({"config.json": "{", "model.safetensors": ""}, "", "cannot be read as JSON"),
        ({"config.json": '{"auto_map": {}}', "model.safetensors": ""}, "", "brings its own Python code"),
        ({"config.json": "{}", "model.safetensors": ""}, "", None),
    ],
)
def test_a_model_folder_is_judged_as_a_run_judges_it(recipe, tmp_path, files, policy, remedy):
    folder = tmp_path / "m"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    found = needs(recipe(f"model: {folder}\n{policy}"))["model"]
    if remedy is None:
        assert (found.state, found.found) == ("fine", f"{folder}, a folder")
    else:
        assert found.state == "missing"
        assert remedy in found.remedy


@pytest.mark.parametrize("model", ["./none", "a/b-"])
def test_a_name_that_neither_a_folder_nor_the_hub_has(recipe, model):
    found = needs(recipe(f"model: {model}"))
    assert found["model"].state == "missing"
    assert "memory" not in found


def test_a_model_whose_sizes_cannot_be_read(recipe, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    memory = needs(recipe(f"model: {tmp_path}"))["memory"]
    assert (memory.state, memory.found) == ("optional", "cannot be planned")
    assert "its config.json names no 'num_attention_heads'" in memory.remedy


def test_a_recipe_that_cannot_be_read_is_named_in_a_list_of_recipes(recipe, tmp_path):
    recipe("stesp: 3")
    (finding,) = find_recipes(tmp_path)
    assert (finding.found, finding.state) == ("cannot be used", "optional")
    (finding,) = find_needs([tmp_path / "recipe.yaml"])
    assert finding.state == "missing"
    assert "Did you mean 'steps'?" in finding.remedy


# -- the trial


def test_the_miniature_answers():
    finding = trial.try_generation()
    assert finding.state == "fine"
    assert finding.found.endswith("right answer")


def test_a_wrong_answer_and_a_failure_are_told(monkeypatch):
    monkeypatch.setattr(trial, "_generate", lambda: (False, 5, 0.1))
    assert trial.try_generation().state == "missing"

    def fail():
        raise ModelError("no weights\nmore")

    monkeypatch.setattr(trial, "_generate", fail)
    assert trial.try_generation().remedy == "ModelError: no weights"


def test_without_torch_the_rest_is_still_told(monkeypatch):
    monkeypatch.setattr(packages, "installed", lambda package: None if package == "torch" else "99.0")
    found = by_name(examine())
    assert found["torch"].state == "missing"
    assert found["generation"].found == "not tried"
    assert "GPU" not in found


def test_the_hub_is_asked_only_on_request(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    finding = trial.reach_hub(timeout=1.0)
    assert finding.found == "does not answer (ConnectError)"
    monkeypatch.setattr("luffy.doctor.examination.reach_hub", lambda: Finding("trial", "hub", "asked"))
    monkeypatch.setattr("luffy.doctor.examination.try_generation", lambda: Finding("trial", "generation", "fine"))
    assert "hub" not in by_name(examine())
    assert "hub" in by_name(examine(hub=True))


def test_options_can_be_found_as_modules():
    """`needs_of` looks for modules by the names of trackers, which are those of their packages."""
    assert importlib.util.find_spec("tensorboard") is not None
