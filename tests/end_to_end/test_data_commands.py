"""`luffy data prepare` and `luffy data check` as a user calls them, and the five minutes of docs/data.md as written."""

import json
import re
import sys
import textwrap
from pathlib import Path

import pytest

from luffy import cli
from luffy.cli import console

DOCS = Path(__file__).parents[2] / "docs/data.md"
GSM8K = {"question": "How many are 24 and 48?", "answer": "24+48 = <<24+48=72>>72.\n#### 72"}


@pytest.fixture
def luffy(monkeypatch, capsys, tmp_path):
    """Run a command in a folder of its own. Returns what it wrote to stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.results, "width", 200)
    monkeypatch.setattr(console.messages, "width", 200)

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["luffy", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        stdout, stderr = capsys.readouterr()
        assert (ended.value.code or 0) == status, stderr
        assert "Traceback" not in stdout + stderr
        return stdout, stderr

    return run


def test_from_a_sheet_to_a_run_as_the_documentation_says(luffy, tmp_path):
    section = re.search(r"## In five minutes.*?\n## ", DOCS.read_text(), re.DOTALL)[0]
    sheet = re.search(r"\n\n((?:    .*\n)+)", section)[1]
    recipe = re.search(r"```yaml\n(.*?)```", section, re.DOTALL)[1]
    commands = re.findall(r"^    luffy (data .*|train .*|eval .*)$", section, re.MULTILINE)
    (tmp_path / "sheet.csv").write_text(textwrap.dedent(sheet))
    (tmp_path / "my.yaml").write_text(recipe)
    assert [command.split()[0] for command in commands] == ["data", "data", "train", "eval"]
    stdout, _ = luffy(*commands[0].split())
    assert "sheet.csv: 3 problems, 2 traces, 1 of the problems without a trace" in stdout
    assert stdout.strip().endswith("ok")
    for command in commands[1:]:
        stdout, _ = luffy(*command.split())
    assert (tmp_path / "runs/mine/model/model.safetensors").is_file()
    assert "avg@1" in stdout


def test_prepare_then_check(luffy, tmp_path):
    (tmp_path / "raw.jsonl").write_text(json.dumps(GSM8K))
    stdout, _ = luffy("data", "prepare", "gsm8k", "--from", "raw.jsonl")
    assert stdout.splitlines() == [
        "gsm8k.jsonl: 1 problems, 1 traces, 0 problems without",
        "to train on it: data.train=gsm8k.jsonl reward.kind=number",
    ]
    stdout, _ = luffy("data", "prepare", "gsm8k", "--from", "raw.jsonl", "--json")
    assert json.loads(stdout)["problems"] == 1
    stdout, _ = luffy("data", "check", "gsm8k.jsonl", "--kind", "number", "--json")
    assert json.loads(stdout)["ok"] is True
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gsm8k.jsonl", "raw.jsonl"]


def test_check_with_limits_overlap_closing_and_fix(luffy, tmp_path):
    rows = [
        {"prompt": "Q1+1:", "answer": "02", "traces": ["1+1=02#02"]},
        {"prompt": "Q2+2:", "answer": "04", "traces": ["2+2=05#05"]},
        {"prompt": "Q3+3:", "answer": "06"},
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "test.jsonl").write_text(json.dumps({"prompt": "q3 + 3", "answer": "06"}))
    given = ["data", "check", "train.jsonl", "rollout.max_tokens=8", "--model", "miniature", "--closing", "="]
    given += ["--benchmark", "test.jsonl"]
    stdout, _ = luffy(*given, status=1)
    for expected in (
        "2 over the limit of 8 (rows 1, 2)",
        "row 1: trace 1 has 10 tokens, would lose",
        "row 2: trace 1 does not verify: got '05', expected '04'",
        "row 3: test, row-1: 'q3 3'",
        "not ok",
    ):
        assert expected in stdout
    _, stderr = luffy(*given, "--fix", "clean.jsonl")
    assert "clean.jsonl: 2 problems, 0 traces. clean-left-out.jsonl: 1 rows and 2 traces that were left out" in stderr
    luffy("data", "check", "clean.jsonl")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["prepare", "gsm9k"], 2, "unknown set 'gsm9k'. Did you mean 'gsm8k'"),
        (["prepare", "gsm8k", "--from", "none.jsonl"], 1, "none.jsonl: there is no such file"),
        (["prepare", "gsm8k", "--keep", "best"], 2, "--keep: expected first, shortest or all"),
        (["prepare", "miniature", "traecd=1"], 2, "Did you mean 'data.miniature.traced'"),
        (["prepare", "miniature", "--out", "/proc/x/y.jsonl"], 1, "cannot be written"),
        (["check", "none.csv"], 1, "none.csv: there is no such file"),
        (["check", "none.csv", "data.columns.promt=x"], 2, "Did you mean 'data.columns.prompt'"),
        (["check", "none.csv", "--benchmark", "miniature/hrad"], 2, "Did you mean 'miniature/hard'"),
    ],
)
def test_mistakes_are_sentences(luffy, arguments, status, message):
    _, stderr = luffy("data", *arguments, status=status)
    assert message in stderr
