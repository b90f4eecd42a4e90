"""Faults injected into a run: it goes on, or stops with a sentence and leaves what it had (docs/reliability.md)."""

import contextlib
import dataclasses
import errno
import json
import math
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from luffy import ConfigError, RunError, train
from luffy.reward import VerifierPool
from luffy.rollout import Sampling, TransformersEngine, stream
from luffy.training.checkpoint import find_checkpoint, find_damage
from luffy.training.learner import Learner
from luffy.training.run import Run
from luffy.types import Completion
from small_runs import assert_same_run, lines, numbers, small

BARE = {
    "evaluation.benchmarks": [], "evaluation.watch": [], "evaluation.every": 0, "problems_per_step": 2,
    "rollout.max_tokens": 24, "data.miniature.shortest": 1, "data.miniature.longest": 2, "rollouts_every": 1,
}  # fmt: skip


def bare(path, **overrides):
    """The smallest run there is: nothing is evaluated."""
    return small(path, **BARE | {"method": "luffy"} | overrides)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed")
    train(bare(path, checkpoint_every=1))
    return path


class PowerCutError(BaseException):
    pass


# -- numbers that are none


def spoil_loss(monkeypatch, value):
    original, calls = Learner._loss, []

    def spoilt(self, rows):
        calls.append(1)
        loss, stats = original(self, rows)
        return (loss * value if len(calls) == 2 else loss), stats

    monkeypatch.setattr(Learner, "_loss", spoilt)


def spoil_gradient(monkeypatch, value):
    original = Learner._apply_gradient

    def spoilt(self, step, numbers):
        if step == 1:
            next(self.policy.parameters()).grad.view(-1)[0] = value
        return original(self, step, numbers)

    monkeypatch.setattr(Learner, "_apply_gradient", spoilt)


def spoil_logprobs(monkeypatch, value):
    original, calls = Learner._chunk_loss, []

    def spoilt(self, scores, chunk, reference):
        calls.append(1)
        if len(calls) == 2:
            scores = dataclasses.replace(scores, logprobs=scores.logprobs * value)
        return original(self, scores, chunk, reference)

    monkeypatch.setattr(Learner, "_chunk_loss", spoilt)


def spoil_stream(monkeypatch, call, spoil):
    """Let the engine hand over spoil(completions) in place of what its call of this number, from 1, has drawn."""
    original, calls = TransformersEngine.stream, []

    def spoilt(self, prompts, n, sampling):
        calls.append(1)
        for index, completions in original(self, prompts, n, sampling):
            yield index, spoil(completions) if len(calls) == call else completions

    monkeypatch.setattr(TransformersEngine, "stream", spoilt)


def spoil_engine(monkeypatch, value):
    def spoilt(completions):
        return [dataclasses.replace(one, logprobs=(value,) * len(one.logprobs)) for one in completions]

    spoil_stream(monkeypatch, 2, spoilt)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient, spoil_logprobs, spoil_engine])
def test_a_number_that_is_none_skips_one_update(spoil, value, tmp_path, monkeypatch, caplog):
    spoil(monkeypatch, value)
    seen = []
    summary = train(
        bare(tmp_path, steps=3), on_step=lambda step, steps, metrics: seen.append(metrics["update/skipped"])
    )
    assert (summary.status, seen) == ("finished", [0, 1, 0])
    written = "".join(path.read_text() for path in [tmp_path / "metrics.jsonl", *tmp_path.glob("rollouts/*")])
    assert "NaN" not in written
    assert "Infinity" not in written
    assert "step 2: loss or gradient is not finite, update skipped (1 of 3 allowed in a row)" in caplog.text
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "model/model.safetensors").values())


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.5, None])
def test_a_reward_that_is_none_is_a_failure_of_the_verifier(value, tmp_path):
    calls = []

    def sometimes(completion, answer):
        calls.append(1)
        return value if len(calls) == 12 else len(calls) % 2 == 0  # after the eight traces

    train(bare(tmp_path, steps=3, **{"data.on_bad_trace": "keep"}), reward=sometimes)
    assert [line["verifier/failures"] for line in lines(tmp_path / "metrics.jsonl")].count(1) == 1
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_skipped_updates_are_counted_across_a_kill(tmp_path, monkeypatch):
    def cut(step, steps, metrics):
        if step == 3:
            raise PowerCutError

    original = Learner._apply_gradient
    monkeypatch.setattr(
        Learner, "_apply_gradient", lambda self, step, numbers: original(self, step, math.nan if step else numbers)
    )
    with pytest.raises(PowerCutError):
        train(bare(tmp_path, checkpoint_every=1, steps=9), on_step=cut)
    with pytest.raises(RunError, match="3 updates in a row"):
        train(bare(tmp_path, checkpoint_every=1, steps=9))
    assert len(lines(tmp_path / "metrics.jsonl")) == 3  # the fourth is the third in a row


# -- the verifier


def hang():
    time.sleep(60)


def leave():
    os._exit(3)


def devour():
    return bytes(2**34)


def throw():
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("misbehave", "failure"), [(hang, "timeout"), (leave, "crash"), (devour, "memory"), (throw, "error: KeyError")]
)
def test_a_verifier_that_misbehaves_costs_one_verdict(misbehave, failure, tmp_path, monkeypatch):
    flag = tmp_path / "done"
    failures = []

    def verifier(completion, answer):
        if not flag.exists():
            flag.touch()
            misbehave()
        return True

    from luffy.training import groups

    made = groups.sampled_rollout
    monkeypatch.setattr(
        groups, "sampled_rollout", lambda *given: failures.append(given[-1] and given[-1].failure) or made(*given)
    )
    problems = _problems()
    summary = train(
        bare(
            tmp_path / "run",
            steps=2,
            method="on_policy",
            **{"reward.workers": 1, "reward.deadline": 3, "rollout.max_tokens": 70},
        ),
        problems=problems,
        reward=verifier,
    )
    assert summary.status == "finished"
    [only] = [one for one in failures if one]
    assert failure in only
    assert [line["verifier/failures"] for line in lines(tmp_path / "run/metrics.jsonl")] == [1, 0]


def _problems():
    from luffy import Problem

    return [Problem(str(place), f"Q1{place}+5:", "22") for place in range(3)]


def test_workers_that_cannot_be_started_are_a_sentence():
    """No space in the temporary folder, in which their sockets lie."""
    program = (
        "import tempfile, sys, errno\n"
        "def none(*a, **k): raise FileNotFoundError(errno.ENOENT, 'No usable temporary directory found')\n"
        "tempfile.mkdtemp = tempfile.gettempdir = none\n"
        "from luffy import RunError\n"
        "from luffy.reward import VerifierPool\n"
        "try:\n"
        "    with VerifierPool('reasoning_gym', workers=1, deadline=1) as pool:\n"
        "        pool.verify_all([('4', '{}')])\n"
        "except RunError as error:\n"
        "    print('said:', error)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert "said: the verifier's workers ended 4 times without a verdict" in ended.stdout, ended.stderr
    assert "No usable temporary directory found). Is there enough memory for them, and space in the" in ended.stdout
    assert "Traceback" not in ended.stderr


# -- the clock


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
def test_a_clock_that_jumps_changes_nothing(jump, undisturbed, tmp_path, monkeypatch):
    now = time.time
    train(
        bare(tmp_path, checkpoint_every=1),
        on_step=lambda step, steps, metrics: monkeypatch.setattr(time, "time", lambda: now() + jump * step),
    )
    assert_same_run(tmp_path, undisturbed)
    assert all(line["time/step"] < 600 for line in lines(tmp_path / "metrics.jsonl"))


def test_a_clock_that_jumps_costs_no_verdict(monkeypatch):
    def slow(completion, answer):
        time.sleep(0.5)
        return True

    now = time.time
    with VerifierPool(slow, workers=1, deadline=20) as pool:
        pool.verify_all([("a", "b")])
        pending = pool.submit([("a", "b")])
        time.sleep(0.2)
        monkeypatch.setattr(time, "time", lambda: now() + 3600)
        [verdict] = pending.result()
    assert verdict.failure is None
    assert verdict.correct


# -- the engine


ONE = Completion((1, 2), (-0.5, -0.5), True)


class FakeEngine:
    def __init__(self, groups):
        self.groups = groups

    def stream(self, prompt_ids, n, sampling):
        yield from self.groups


@pytest.mark.parametrize(
    ("groups", "trouble"),
    [
        ([], "returned nothing for 2 of 2 prompts"),
        ([(0, [ONE, ONE])], "returned nothing for 1 of 2 prompts"),
        ([(0, [ONE])], "returned 1 completions of a prompt in place of 2"),
        ([(0, [ONE] * 3)], "returned 3 completions of a prompt in place of 2"),
        ([(0, [ONE] * 2), (0, [ONE] * 2)], "completions that nobody asked for"),
        ([(5, [ONE] * 2)], "completions that nobody asked for"),
        ([(0, [ONE, Completion((), (), True)])], "a completion without tokens"),
        ([(0, [ONE, Completion((1,) * 5, (0.0,) * 5, False)])], "a completion of 5 tokens in place of at most 4"),
        ([(0, [ONE, Completion((1, 2), (0.0,), True)])], "1 log-probs for a completion of 2 tokens"),
    ],
)
def test_an_engine_that_returns_something_else_is_refused(groups, trouble):
    with pytest.raises(RunError, match=rf"the engine \(FakeEngine\) returned .*{trouble.removeprefix('returned ')}"):
        list(stream(FakeEngine(groups), [[1], [2]], 2, Sampling(max_tokens=4)))
    assert list(stream(FakeEngine([(1, [ONE]), (0, [ONE])]), [[1], [2]], 1, Sampling(max_tokens=4)))


def test_an_engine_with_tokens_that_there_are_not_stops_the_run(tmp_path, monkeypatch):
    spoil_stream(monkeypatch, 3, lambda completions: [Completion((10**6,), (-1.0,), True), *completions[1:]])
    with pytest.raises(RunError, match=r"token 1000000, and the vocabulary ends at \d+.*checkpoint is .*step-000002\."):
        train(bare(tmp_path, checkpoint_every=1))
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"


# -- what keeps a run from being exact, and which checkpoints stay


def test_what_keeps_it_from_being_exact_is_said_when_it_goes_on(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="luffy")
    train(bare(tmp_path, steps=1))
    train(bare(tmp_path, steps=2))
    assert "going on after step 1" in caplog.text
    assert "may differ" not in caplog.text
    monkeypatch.setattr("luffy.training.run_folder.library_versions", lambda: {"torch": "1.0"})
    train(bare(tmp_path, steps=3))
    assert "may differ from those of a run never interrupted: torch " in caplog.text
    assert "there, 1.0 here" in caplog.text


def test_that_a_gpu_is_not_exact_is_said(caplog):
    run = SimpleNamespace(folder=SimpleNamespace(path="run", differences=[]))
    Run._say_how_it_goes_on(run, 3, "cuda")
    assert "may differ in the last digits" in caplog.text
    assert "kernels of cuda" in caplog.text


def test_the_best_checkpoint_stays(tmp_path, monkeypatch):
    values = iter([0.1, 0.9, 0.2, 0.3, 0.4])

    def measured(*_, **__):
        value = {"value": next(values), "low": 0.0, "high": 1.0, "n": 1}
        return SimpleNamespace(generations=[], metrics=lambda: {"avg@1": value})

    monkeypatch.setattr("luffy.training.recorder.measure", measured)
    watched = {"evaluation.benchmarks": ["miniature/short"], "evaluation.watch": ["miniature/short"]}
    best = {"evaluation.every": 1, "checkpoint_every": 1, "keep_checkpoints": 1, "keep_best_checkpoints": 1}
    train(bare(tmp_path, steps=4, **watched, **best))
    assert sorted(path.name for path in tmp_path.glob("checkpoints/*")) == ["step-000001", "step-000004"]


def test_the_best_needs_a_score(tmp_path):
    with pytest.raises(ConfigError, match=r"keep_best_checkpoints=1 needs a score.*set evaluation\.watch"):
        bare(tmp_path, keep_best_checkpoints=1)


# -- data


def test_a_data_file_that_changes_during_a_run_is_noticed_when_it_goes_on(tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"Q1{place}+5:", "answer": str(15 + place)} for place in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = data.read_text()

    def change(step, steps, metrics):
        data.write_text(before.replace("Q10", "Q20"))

    settings = {"method": "on_policy", "data.train": str(data)}
    assert train(bare(tmp_path / "run", steps=2, **settings), on_step=change).status == "finished"
    with pytest.raises(RunError, match=r"data\.jsonl has changed since.*Choose another output="):
        train(bare(tmp_path / "run", steps=4, **settings))
    data.write_text(before)
    assert train(bare(tmp_path / "run", steps=4, **settings)).status == "finished"
    assert train(bare(tmp_path / "whole", steps=4, **settings)).status == "finished"
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


# -- the disk


def fail_from(monkeypatch, call, error):
    """From its `call`-th fsync or rename on, nothing can be written."""
    calls = []

    def failing(function):
        def wrapped(*given, **named):
            calls.append(1)
            if len(calls) >= call:
                raise OSError(error, os.strerror(error))
            return function(*given, **named)

        return wrapped

    for name in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, name, failing(getattr(os, name)))


def stop_at(call, error, undisturbed, path, monkeypatch):
    """A run on whose disk nothing can be written from the `call`-th call on, and which then goes on."""
    config = bare(path, checkpoint_every=1)
    with monkeypatch.context() as patch:
        fail_from(patch, call, error)
        try:
            return train(config).status == "finished"
        except RunError as stopped:
            message = str(stopped)
    assert os.strerror(error) in message
    checkpoint = find_checkpoint(path)
    assert checkpoint is None or find_damage(checkpoint) is None
    assert train(config).status == "finished"
    assert_same_run(path, undisturbed)
    assert not [*path.rglob("*.part"), *path.rglob("*.before"), *path.rglob("*.damaged")]
    return False


@pytest.mark.parametrize(("call", "error"), [(2, errno.EROFS), (25, errno.ENOSPC), (48, errno.EROFS)])
def test_a_disk_on_which_nothing_can_be_written_stops_the_run(call, error, undisturbed, tmp_path, monkeypatch):
    assert not stop_at(call, error, undisturbed, tmp_path / "run", monkeypatch)


@pytest.mark.slow
def test_a_disk_may_fail_at_any_call(undisturbed, tmp_path, monkeypatch):
    call = 0
    while not stop_at(call := call + 1, errno.ENOSPC, undisturbed, tmp_path / str(call), monkeypatch):
        assert call < 300
    assert call > 50


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("a file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full(small_disk, undisturbed, monkeypatch):
    """It fills up while the second checkpoint is written."""
    from luffy.training import checkpoint

    run, ballast = small_disk / "run", small_disk / "ballast"
    save = checkpoint.save_file

    def fill_up(tensors, path):
        if "step-000002" in str(path):
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
        save(tensors, path)

    config = bare(run, checkpoint_every=1, keep_checkpoints=1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fill_up)
        with pytest.raises(RunError, match=r"step-000002: cannot be written .*No space left.*is .*step-000001"):
            train(config)
    assert find_damage(find_checkpoint(run)) is None
    ballast.unlink()
    train(config)
    assert_same_run(run, undisturbed)


def test_a_disk_that_has_become_read_only(small_disk, undisturbed):
    """As after an error of the file system, until somebody mounts it anew."""

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    def cut(step, steps, metrics):
        if step == 2:
            raise PowerCutError

    run = small_disk / "run"
    config = bare(run, checkpoint_every=1, keep_checkpoints=1)
    with pytest.raises(PowerCutError):
        train(config, on_step=cut)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    remount("ro")
    with pytest.raises(RunError, match=r"cannot be written .*Read-only file system"):
        train(config)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    remount("rw")
    train(config)
    assert_same_run(run, undisturbed)
