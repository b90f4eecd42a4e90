"""Completion: what is offered, and that bash, zsh and fish are told it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from luffy.completion import complete_benchmark, complete_methods, complete_recipe, complete_setting

ROOT = Path(__file__).parents[1]


def test_recipes_are_yaml_files_and_folders(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    for name in ("recipes/miniature.yaml", "recipes/mine.yml", "recipes/notes.md", "my.yaml", ".hidden.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    assert complete_recipe("") == ["my.yaml", "recipes/"]
    assert complete_recipe("recipes/mi") == ["recipes/mine.yml", "recipes/miniature.yaml"]
    assert complete_recipe("recipes/") == ["recipes/mine.yml", "recipes/miniature.yaml"]
    assert complete_recipe(f"{tmp_path}/m") == [f"{tmp_path}/my.yaml"]
    assert complete_recipe("none/") == []


def test_settings_methods_and_benchmarks():
    assert complete_setting("optimizer.lea") == ["optimizer.learning_rate="]
    assert "steps=" in complete_setting("")
    assert complete_setting("method=rl") == ["method=rl_sft"]
    assert complete_setting("steps=") == []
    assert complete_methods("luffy,rl") == ["luffy,rl_sft"]
    assert "luffy,luffy" not in complete_methods("luffy,")
    assert complete_benchmark("miniature/ha") == ["miniature/hard"]


@pytest.fixture
def environment(tmp_path):
    """An environment in which `luffy` is a command."""
    command = tmp_path / "luffy"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m luffy "$@"\n')
    command.chmod(0o755)
    return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_bash_completes_a_recipe(environment):
    if not shutil.which("bash"):
        pytest.skip("no bash")
    program = (
        'eval "$(luffy --show-completion bash)"; COMP_WORDS=(luffy train recipes/mini); COMP_CWORD=2; '
        '_luffy_completion luffy; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["recipes/miniature.yaml"], done.stderr


@pytest.mark.parametrize(
    ("shell", "line", "offered"),
    [("zsh", "luffy train r.yaml optimizer.lea", "optimizer.learning_rate="), ("fish", "luffy doc", "doctor")],
)
def test_zsh_and_fish_are_told(environment, shell, line, offered):
    asked = {
        "_LUFFY_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(["luffy"], env=environment | asked, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert offered in done.stdout, done.stderr
