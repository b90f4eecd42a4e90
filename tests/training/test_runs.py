"""Whole runs on the miniature: what they leave, how they go on, what they refuse."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luffy import ConfigError, DataError, LuffyError, Problem, RunError, Trace, load_config, train

SMALL = {
    "steps": 4,
    "problems_per_step": 2,
    "rollout.group_size": 3,
    "rollout.max_tokens": 70,
    "sft.steps": 3,
    "sft.batch_size": 2,
    "checkpoint_every": 2,
    "rollouts_every": 2,
    "reward.workers": 0,
    "optimizer.learning_rate": 1e-3,
    "evaluation.benchmarks": ["miniature/short"],
    "evaluation.limit": 4,
    "data.miniature.problems": 6,
    "data.miniature.traced": 6,
}


def settings(folder, **changes):
    return load_config(overrides=SMALL | {"output": str(folder)} | changes)


def weights(folder):
    return load_file(folder / "model" / "model.safetensors")


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(("time/", "perf/"))} for line in lines]


def assert_same_run(one, other):
    assert metrics(one) == metrics(other)
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    for path in sorted(one.glob("rollouts/*")) + sorted(one.glob("evaluations/*/*")):
        assert path.read_text() == (other / path.relative_to(one)).read_text()
    assert len(list(one.glob("rollouts/*"))) == len(list(other.glob("rollouts/*")))


class Killed(BaseException):
    """Stands for the end of the process in the middle of a run."""


def train_killed_at(config, step):
    def die(number, _steps, _metrics):
        if number == step:
            raise Killed

    with pytest.raises(Killed):
        train(config, on_step=die)


def test_what_a_run_leaves(tmp_path):
    summary = train(settings(tmp_path))
    written = json.loads((tmp_path / "summary.json").read_text())
    assert (written["method"], written["seed"], written["status"], written["steps"]) == ("luffy", 0, "finished", 4)
    assert set(written["tokens"]) == {"trained", "generated"}
    assert set(written["evaluations"]["miniature/short"]["avg@1"]) == {"value", "low", "high", "n"}
    assert summary.seconds == written["seconds"] > 0
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    expected = {
        "reward/on_policy", "reward/traces", "groups/all_failed", "groups/all_solved", "guidance/trace_advantage",
        "guidance/trace_probability", "policy/entropy", "policy/engine_gap", "completion/length",
        "completion/truncated", "update/loss", "update/gradient_norm", "update/skipped", "verifier/failures",
    }  # fmt: skip
    assert expected <= set(lines[0])
    timed = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert {"time/generate", "time/verify", "time/update", "time/synchronise"} <= set(timed)
    assert {"perf/padding_fraction", "perf/tokens_per_second"} <= set(timed)
    assert lines[0]["policy/engine_gap"] < 1e-4
    assert [path.name for path in sorted(tmp_path.glob("rollouts/*"))] == ["step-000002.jsonl", "step-000004.jsonl"]
    group = json.loads((tmp_path / "rollouts" / "step-000002.jsonl").read_text().splitlines()[0])
    assert len(group["rollouts"]) == 3
    assert [one["off_policy"] for one in group["rollouts"]] == [False, False, True]
    assert sum(one["advantage"] for one in group["rollouts"]) == pytest.approx(0)
    AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert "luffy" in (tmp_path / "model" / "README.md").read_text()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("method", ["luffy", "sft_rl", "sft"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, method):
    train(settings(tmp_path / "whole", method=method))
    broken = settings(tmp_path / "broken", method=method)
    train_killed_at(broken, 1)  # before the first checkpoint
    train_killed_at(broken, 3)  # after it, with a step that must be taken again
    assert train(broken).status == "finished"
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_killed_for_good_goes_on(tmp_path):
    """`kill -9` in a process of its own, at the third step."""
    code = (
        "import os, sys, json; from luffy import load_config, train\n"
        "config = load_config(overrides=json.loads(sys.argv[1]))\n"
        "train(config, on_step=lambda step, steps, metrics: os.kill(os.getpid(), 9) if step == 3 else None)\n"
    )
    given = json.dumps(SMALL | {"output": str(tmp_path / "broken")})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code, given], env=environment, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    train(settings(tmp_path / "broken"))
    train(settings(tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(tmp_path):
    def interrupt(step, _steps, _metrics):
        if step == 1:
            signal.raise_signal(signal.SIGINT)

    config = settings(tmp_path / "broken", checkpoint_every=0)
    assert train(config, on_step=interrupt).status == "stopped"
    assert train(config).status == "finished"
    train(settings(tmp_path / "whole", checkpoint_every=0))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_finished_run_is_not_repeated_and_can_be_continued(tmp_path):
    train(settings(tmp_path / "run", steps=2))
    seen = []
    again = train(settings(tmp_path / "run", steps=2), on_step=lambda *step: seen.append(step))
    assert (again.status, again.steps, seen) == ("finished", 2, [])
    assert train(settings(tmp_path / "run", steps=4)).steps == 4
    train(settings(tmp_path / "whole", steps=4))
    left, right = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_another_configuration_or_data_in_the_same_folder_is_refused(tmp_path):
    train(settings(tmp_path, steps=1))
    with pytest.raises(RunError, match=r"objective\.gamma: 0\.1 there, 0\.3 here"):
        train(settings(tmp_path, steps=1, **{"objective.gamma": 0.3}))
    problems = [Problem("a", "Q10+1:", "11", traces=(Trace("10+1=11#11"),))]
    with pytest.raises(RunError, match="other data"):
        train(settings(tmp_path, steps=1), problems=problems)


def test_a_folder_in_use_is_refused(tmp_path):
    def start_another(step, _steps, _metrics):
        with pytest.raises(RunError, match="another process"):
            train(settings(tmp_path))

    train(settings(tmp_path, steps=1), on_step=start_another)


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    train(settings(tmp_path / "whole"))
    broken = settings(tmp_path / "broken")
    train_killed_at(broken, 3)
    (tmp_path / "broken" / "checkpoints" / "step-000003.part").mkdir()
    (tmp_path / "broken" / "checkpoints" / "step-000003").mkdir()
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "half')
    train(broken)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    config = settings(tmp_path)
    train_killed_at(config, 3)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("luffy.training.checkpoint.save_file", full)
    with pytest.raises(RunError, match=r"No space left.*last good checkpoint is .*step-000002"):
        train(config)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
    monkeypatch.undo()
    assert train(config).status == "finished"


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        train(settings(tmp_path / "file" / "run"))


def test_a_verifier_that_keeps_failing_stops_the_run(tmp_path):
    def broken(completion, answer):
        raise ZeroDivisionError

    problems = [Problem(f"{n}", f"Q{n}+1:", f"{n + 1}") for n in range(10, 20)]
    with pytest.raises(LuffyError, match="failed"):
        train(settings(tmp_path, method="on_policy"), problems=problems, reward=broken)


def test_a_method_that_learns_from_traces_needs_some(tmp_path):
    problems = [Problem(f"{n}", f"Q{n}+1:", f"{n + 1}") for n in range(10, 20)]
    with pytest.raises(DataError, match="no problem has one"):
        train(settings(tmp_path, method="luffy"), problems=problems)
    assert train(settings(tmp_path / "other", method="on_policy"), problems=problems).status == "finished"


def test_an_unknown_benchmark_is_refused_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="miniature/hard"):
        train(settings(tmp_path, **{"evaluation.benchmarks": ["miniature/hrad"]}))
    assert not (tmp_path / "metrics.jsonl").exists()
