"""The commands as a user calls them: results on stdout, messages on stderr, exit status 0, 1 or 2, never a traceback.

A few are processes of their own; the others are called in this one, since each start of torch takes seconds.
"""

import fcntl
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luffy import cli
from luffy.algorithm.methods import METHODS
from luffy.cli import console
from luffy.config import load_config
from small_jobs import obey_interrupts

ROOT = Path(__file__).parents[2]
RECIPE = "recipes/miniature.yaml"
SMALL = [
    "steps=2", "sft.steps=2", "methods.sft_rl.sft.steps=2", "methods.sft_rl.steps=2", "problems_per_step=2",
    "rollout.group_size=3", "rollout.max_tokens=70", "data.miniature.problems=6", "data.miniature.traced=6",
    "evaluation.benchmarks=miniature/short", "evaluation.watch=[]", "evaluation.limit=4",
]  # fmt: skip


def start(*arguments, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        [sys.executable, "-m", "luffy", *map(str, arguments)],
        cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def check_manners(status, expected, stdout, stderr):
    assert status == expected, stderr
    assert "Traceback" not in stdout + stderr
    assert "Loading weights" not in stderr
    assert "Writing model shards" not in stderr
    return stdout, stderr


def luffy_process(*arguments, status=0):
    """Run a command as a process in the repository's root. Returns what it wrote to stdout and stderr."""
    process = start(*arguments)
    stdout, stderr = process.communicate(timeout=120)
    return check_manners(process.returncode, status, stdout, stderr)


@pytest.fixture
def luffy(monkeypatch, capsys):
    """The same in this process, without log messages."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(console.results, "width", 200)
    monkeypatch.setattr(console.messages, "width", 200)

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["luffy", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return check_manners(ended.value.code or 0, status, *capsys.readouterr())

    return run


def test_help_is_quick():
    """In seconds of the processor: those of the clock depend on what else runs. See test_start_up for the rest."""
    luffy_process("--help")  # the file cache is warm from now on
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    stdout, _ = luffy_process("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5
    assert {"train", "compare", "eval", "data", "report", "config", "methods", "doctor"} <= set(stdout.split())


def test_the_command_of_the_design(tmp_path):
    given = ["train", RECIPE, "method=luffy", "steps=5", f"output={tmp_path}", "evaluation.limit=5"]
    stdout, stderr = luffy_process(*given)
    assert f"Model: {tmp_path}/model" in stdout
    assert "step 5/5" in stderr
    assert "INFO     256 problems with 256 traces" in stderr
    assert "WARNING" not in stderr
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", stdout + stderr)  # nothing but plain lines in a pipe
    assert len((stdout + stderr).splitlines()) <= 24  # a screen
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 5
    _, stderr = luffy_process(*given)
    assert "already finished" in stderr


def test_every_method_trains_and_goes_on(tmp_path):
    """In one process, since each start takes seconds; `--json` and the command line are tested apart."""
    from luffy import load_config, train

    for method in METHODS:
        summary = train(load_config(ROOT / RECIPE, [*SMALL, f"method={method}", f"output={tmp_path / method}"]))
        assert (summary.method, summary.status) == (method, "finished")
        assert (tmp_path / method / "model/config.json").exists()


def test_json_of_training_is_all_there_is_on_stdout(luffy, tmp_path):
    stdout, _ = luffy("train", RECIPE, *SMALL, f"output={tmp_path}", "--json")
    summary = json.loads(stdout)
    assert (summary["status"], summary["steps"], summary["method"]) == ("finished", 2, "luffy")
    assert summary == json.loads((tmp_path / "summary.json").read_text())


def test_ctrl_c_stops_with_a_checkpoint_and_status_130(tmp_path):
    process = start("train", RECIPE, *SMALL, "steps=100000", f"output={tmp_path}", "--json", start_new_session=True)
    for _ in range(1200):
        if (tmp_path / "metrics.jsonl").exists():
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to all processes
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    summary = json.loads(stdout)
    assert summary["status"] == "stopped"
    assert (tmp_path / f"checkpoints/step-{summary['steps']:06d}/state.json").exists()
    assert "the same command goes on from there" in stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_comparison_that_is_stopped_leaves_no_run_behind(number, status, tmp_path):
    given = ["compare", RECIPE, *SMALL, "steps=100000", "--methods", "luffy,sft", "--output", tmp_path]
    process = start(*given, preexec_fn=obey_interrupts)
    run = tmp_path / "luffy/seed-0"
    while not (run / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == status, stderr
    assert "Traceback" not in stderr
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["reason"]) == ("stopped", "termination requested")
    assert (run / f"checkpoints/step-{summary['steps']:06d}/state.json").exists()
    assert not (tmp_path / "sft").exists()
    with (run / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody holds it


def test_a_second_ctrl_c_is_a_sentence_too(luffy, tmp_path, monkeypatch):
    def twice(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("luffy.training.train", twice)
    _, stderr = luffy("train", RECIPE, f"output={tmp_path}", status=130)
    assert "interrupted; the same command goes on from the last checkpoint." in stderr


@pytest.fixture
def files(tmp_path):
    (tmp_path / "good.jsonl").write_text('{"prompt": "Q17+5:", "answer": "22", "traces": ["17+5=22#22"]}\n')
    (tmp_path / "broken.jsonl").write_text('{"prompt": "Q17+5:", "answer": "22"}\n{"prompt": \n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "folder").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "none.yaml"], 2, "none.yaml: there is no such recipe file."),
        (["train", "{files}/list.yaml"], 2, "expected `key: value` lines, got a list."),
        (["train", RECIPE, "optimizer.lr=1"], 2, "unknown key 'optimizer.lr'. Did you mean 'optimizer.learning_rate'?"),
        (["train", RECIPE, "steps"], 2, "override 'steps': expected key=value"),
        (["train", RECIPE, "steps=-3"], 2, "'steps' input should be greater than or equal to 1, got -3."),
        (["train"], 2, "Missing argument"),
        (["trian"], 2, "No such command"),
        (["train", RECIPE, "data.train={files}/god.jsonl"], 1, "Did you mean"),
        (["train", RECIPE, "data.train={files}/broken.jsonl"], 1, "broken.jsonl, row 2"),
        (["train", RECIPE, "data.train={files}/empty.jsonl"], 1, "the file is empty"),
        (["train", RECIPE, "reward.kind=nonsense"], 2, "nonsense"),
        (["train", RECIPE, "evaluation.benchmarks=miniature/hrad", "evaluation.watch=[]"], 2, "'miniature/hard'"),
        (["train", RECIPE, "model={files}/folder"], 1, "config.json is missing"),
        (["train", RECIPE, "model={files}/fodler"], 1, "Did you mean 'folder'?"),
        (["eval", "{files}/folder", "--benchmark", "miniature/short"], 1, "config.json is missing"),
        (["eval", "miniature", "--benchmark", "miniature/sort"], 2, "Did you mean 'miniature/short'?"),
        (
            ["eval", "miniature", "--benchmark", "miniature/short@4", "--set", "evaluation.temperature=0"],
            2,
            "temperature 0 makes all alike",
        ),
        (["compare", RECIPE, "--methods", "luffy,stf"], 2, "unknown method 'stf'. Did you mean 'sft'?"),
        (["data", "show", "{files}/none.jsonl"], 1, "there is no such file"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence_on_stderr(luffy, arguments, status, message, files):
    output = files / "run"
    given = [argument.format(files=files) for argument in arguments]
    if given[0] == "train" and len(given) > 1:
        given.append(f"output={output}")
    if given[0] == "compare":
        given += ["--output", output]
    stdout, stderr = luffy(*given, status=status)
    assert message in stderr
    assert stdout == ""
    assert not list(output.glob("**/*.jsonl"))  # nothing half-written
    assert not (output / "summary.json").exists()


def test_a_wrong_model_does_not_spoil_the_run_folder(luffy, files):
    luffy("train", RECIPE, *SMALL, f"model={files}/folder", f"output={files}/run", status=1)
    luffy("train", RECIPE, *SMALL, "steps=1", f"output={files}/run")


def test_another_configuration_in_the_same_folder(luffy, files):
    luffy("train", RECIPE, *SMALL, "steps=1", f"output={files}/run")
    _, stderr = luffy("train", RECIPE, *SMALL, "steps=1", "seed=3", f"output={files}/run", status=1)
    assert "holds a run of another configuration: seed differs (seed: 0 there, 3 here)" in stderr


def test_evaluation_as_json(luffy, tmp_path):
    stdout, _ = luffy(
        "eval", "miniature", "--benchmark", "miniature/short", "--limit", "20", "--json", "--output", tmp_path,
        "--set", "rollout.max_tokens=84",
    )  # fmt: skip
    (model,) = json.loads(stdout)["models"]
    result = model["evaluations"]["miniature/short"]["avg@1"]
    assert set(result) == {"value", "low", "high", "n"}
    assert result["n"] == 20
    assert 0 <= result["low"] <= result["value"] <= result["high"] <= 1


@pytest.fixture
def run_with_holdout(luffy, tmp_path):
    """A run of one step on four sums, one of them kept out; its folder."""
    rows = [f"Q{n}+5:,{n + 5},{n}+5={n + 5}#{n + 5}" for n in (17, 18, 19, 20)]
    (tmp_path / "sheet.csv").write_text("\n".join(["question,gold,worked", *rows]) + "\n")
    (tmp_path / "my.yaml").write_text(
        f"model: miniature\noutput: {tmp_path}/run\nsteps: 1\nproblems_per_step: 2\n"
        f"data:\n  train: {tmp_path}/sheet.csv\n  columns: {{prompt: question, answer: gold, traces: worked}}\n"
        "  holdout: 1\nreward:\n  kind: number\nrollout:\n  max_tokens: 40\n"
    )
    luffy("train", tmp_path / "my.yaml")
    return tmp_path / "run"


def test_an_evaluation_takes_over_what_a_run_was_trained_with(luffy, run_with_holdout):
    record, kept = run_with_holdout / "config.yaml", run_with_holdout.parent / "eval"
    stdout, stderr = luffy(
        "eval", run_with_holdout / "model", "--recipe", record, "-b", "holdout", "--json", "--output", kept
    )
    (model,) = json.loads(stdout)["models"]
    assert model["evaluations"]["holdout"]["avg@1"]["n"] == 1
    assert "WARNING" not in stderr  # neither of an overlap nor of other settings
    (settings,) = kept.rglob("holdout-*.json")
    settings = json.loads(settings.read_text())
    assert (settings["verifier"], settings["max_tokens"]) == ("number", 40)


def test_an_evaluation_unlike_the_training_is_warned_of(run_with_holdout):
    from luffy.evaluation.models import trained_otherwise

    model, record = str(run_with_holdout / "model"), run_with_holdout / "config.yaml"
    warning = trained_otherwise(model, load_config(None, {"data.template": "none"}))
    assert "reward.kind=exact (number in training)" in warning
    assert "data.template=none (auto in training)" in warning
    assert f"--recipe {record}" in warning
    assert trained_otherwise(model, load_config(record)) is None
    assert trained_otherwise("miniature", load_config()) is None


def test_check_and_show_take_model_and_columns_from_a_recipe(luffy, run_with_holdout):
    folder = run_with_holdout.parent
    stdout, _ = luffy("data", "check", folder / "sheet.csv", "--recipe", folder / "my.yaml")
    assert "none over the limit of 40" in stdout
    stdout, _ = luffy("data", "show", folder / "sheet.csv", "--recipe", folder / "my.yaml")
    assert "> 17+5=22#22<eos>" in stdout


def test_a_run_can_be_repeated_from_its_own_record(luffy, run_with_holdout):
    luffy("train", run_with_holdout / "config.yaml", f"output={run_with_holdout.parent}/again")
    weights = [
        (path / "model/model.safetensors").read_bytes()
        for path in (run_with_holdout, run_with_holdout.parent / "again")
    ]
    assert weights[0] == weights[1]


def test_evaluation_of_a_file_with_several_samples(luffy, files):
    stdout, _ = luffy(
        "eval", "miniature", "-b", f"{files}/good.jsonl@3", "--set", "evaluation.temperature=1",
        "--set", "rollout.max_tokens=8", "--output", files / "eval",
    )  # fmt: skip
    assert "avg@3" in stdout


def test_data_check_tells_good_from_bad(luffy, files):
    stdout, _ = luffy("data", "check", files / "good.jsonl", "--json")
    json.loads(stdout)
    stdout, _ = luffy("data", "check", files / "broken.jsonl", status=1)
    assert "row 2" in stdout
    luffy("data", "check", files / "none.jsonl", status=1)


def test_data_show_marks_what_is_trained(luffy):
    stdout, _ = luffy("data", "show", "miniature", "--count", "1")
    assert "Q" in stdout
    assert "eos" in stdout


def test_config_and_methods_explain(luffy):
    stdout, _ = luffy("config")
    assert "optimizer.learning_rate" in stdout
    stdout, _ = luffy("config", RECIPE, "steps=7", "--json")
    assert json.loads(stdout)["steps"] == 7
    stdout, _ = luffy("methods")
    assert all(name in stdout for name in METHODS)


def test_the_doctor_says_by_its_status_whether_all_is_here(luffy, files, monkeypatch):
    stdout, stderr = luffy("doctor", RECIPE)
    assert "right answer" in stdout  # of the test generation
    assert stderr == ""
    (files / "my.yaml").write_text(f"model: {files}/none\n")
    stdout, stderr = luffy("doctor", files / "my.yaml", status=1)
    assert "missing:" in stderr
    assert f"{files}/none" in stderr
    found = json.loads(luffy("doctor", files / "my.yaml", "--json", status=1)[0])
    assert found["ok"] is False
    assert any(one["state"] == "missing" and one["name"].endswith("model") for one in found["findings"])


def test_a_ctrl_c_while_one_is_answered_ends_it_without_a_traceback():
    code = (
        "import os, signal; from luffy.cli import entry\n"
        "def interrupted(**_): raise KeyboardInterrupt\n"
        "entry.application, entry.messages.print = interrupted, lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "entry.main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


def test_a_comparison_and_again_without_training(luffy, tmp_path):
    given = ["compare", RECIPE, *SMALL, "--methods", "luffy,sft", "--seeds", "1", "--output", tmp_path]
    stdout, stderr = luffy(*given, "--json")
    comparison = json.loads(stdout)
    assert comparison == json.loads((tmp_path / "comparison.json").read_text())
    assert set(comparison["methods"]) == {"luffy", "sft"}
    assert {"methods", "verdicts"} <= set(comparison)
    assert (tmp_path / "report.html").read_text().lstrip().lower().startswith("<!doctype html")
    assert "2/2 sft, seed 0" in stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/seed-0/*")}
    stdout, _ = luffy(*given, "--price", "2")
    assert "dollars at 2 a machine and hour" in (tmp_path / "report.html").read_text()
    luffy("report", tmp_path, "--price", "3")
    assert "dollars at 3 a machine and hour" in (tmp_path / "report.html").read_text()
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/seed-0/*")}
    assert "Page: " in stdout
    assert "Not judged, since it takes 10 steps with traces of every run: The traces' advan" in " ".join(stdout.split())
    _, stderr = luffy(*given, "optimizer.learning_rate=1e-3", status=1)
    assert "holds a finished run of another configuration (optimizer.learning_rate differs)" in stderr


def test_a_run_that_fails_in_a_comparison_is_named(luffy, tmp_path):
    broken = tmp_path / "model"
    broken.mkdir()
    for name in ("config.json", "model.safetensors"):
        (broken / name).write_text("{}")
    given = ["compare", RECIPE, *SMALL, f"model={broken}", "--methods", "luffy", "--seeds", "1"]
    _, stderr = luffy(*given, "--output", tmp_path, status=1)
    assert "1 of 1 runs failed; the first, luffy with seed 0, says:" in stderr
    assert str(broken) in stderr.partition("says:")[2]
