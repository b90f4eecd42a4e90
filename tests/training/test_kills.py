"""Killed by SIGKILL and started again, a run ends bitwise as one that was never interrupted (docs/reliability.md)."""

import json
import os
import random
import shutil
import signal
import time

import kills
import pytest

from luffy.algorithm.methods import METHODS

CASE = "sft_rl, halves, one step ahead"


@pytest.fixture(scope="module")
def launcher():
    launcher = kills.Launcher()
    yield launcher
    launcher.close()


def test_three_kills_change_nothing(launcher, tmp_path, monkeypatch):
    """Across the phases, with mini-batches, ahead: at a random moment, inside a checkpoint, in the last step."""
    monkeypatch.setitem(kills.CASES, CASE, ["method=sft_rl", kills.HALVES, *kills.AHEAD, "steps=3", "sft.steps=3"])
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "run"
    seconds = kills.train_undisturbed(launcher, CASE, undisturbed)
    generator = random.Random()
    first = kills.kill_in_a_step(launcher, CASE, run, generator.randrange(2), generator.random() * seconds)
    writing = kills.kill_while_writing(launcher, CASE, run, generator.randrange(18, 24))
    last = kills.kill_in_a_step(launcher, CASE, run, 5, 0)
    assert first
    assert "checkpoints/step-" in writing
    assert last
    kills.train_undisturbed(launcher, CASE, run)
    assert not kills.differences(run, undisturbed), (first, writing, last)


def test_a_difference_would_be_noticed(launcher, tmp_path, monkeypatch):
    monkeypatch.setitem(kills.CASES, CASE, ["method=sft", "steps=2"])
    kills.train_undisturbed(launcher, CASE, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    model = tmp_path / "other/model/model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    assert kills.differences(tmp_path / "run", tmp_path / "other") == ["model/model.safetensors"]
    metrics = tmp_path / "other/metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    assert "metrics" in kills.differences(tmp_path / "run", tmp_path / "other")


@pytest.mark.parametrize(
    ("number", "status", "reason"),
    [(signal.SIGTERM, 143, "termination requested"), (signal.SIGINT, 130, "Ctrl-C")],
)
def test_asked_to_stop_it_says_by_its_status_how(number, status, reason, launcher, tmp_path, monkeypatch):
    monkeypatch.setitem(kills.CASES, CASE, ["method=sft", "steps=1000000", "checkpoint_every=0"])
    run = tmp_path / "run"
    process = launcher.start(kills.command(CASE, run), tmp_path / "log")
    while not kills.count_lines(run / "metrics.jsonl"):
        time.sleep(0.01)
    os.kill(process, number)
    assert launcher.wait(process) == status
    said, summary = (tmp_path / "log").read_text(), json.loads((run / "summary.json").read_text())
    assert "Traceback" not in said
    assert (summary["status"], summary["reason"]) == ("stopped", reason)
    assert f"({reason}); the same command goes on from there." in " ".join(said.split())
    assert (run / f"checkpoints/step-{summary['steps']:06d}/SHA256SUMS").exists()


def test_a_second_ctrl_c_at_any_time_loses_nothing(launcher, tmp_path, monkeypatch):
    """The first asks for a checkpoint after the step, the second wants the end now; what follows is as without both."""
    monkeypatch.setitem(kills.CASES, CASE, ["method=luffy", kills.HALVES, "steps=6", "checkpoint_every=1"])
    undisturbed, run, log = tmp_path / "undisturbed", tmp_path / "run", tmp_path / "run.log"
    seconds = kills.train_undisturbed(launcher, CASE, undisturbed)
    process = launcher.start(kills.command(CASE, run), log)
    while kills.count_lines(run / "metrics.jsonl") < 2:
        time.sleep(0.01)
    for _ in range(2):
        os.kill(process, signal.SIGINT)
        time.sleep(random.random() * seconds / 2)
    assert launcher.wait(process) == 130
    assert "Traceback" not in log.read_text()
    assert "the same command goes on from" in " ".join(log.read_text().split())
    kills.train_undisturbed(launcher, CASE, run)
    assert not kills.differences(run, undisturbed)


def test_every_method_is_killed():
    assert {setting.removeprefix("method=") for case in kills.CASES.values() for setting in case} >= set(METHODS)


@pytest.mark.slow
def test_every_method_survives_kills_at_random_moments():
    done = list(kills.kill_all(3 * len(kills.CASES), random.randrange(10**6), list(kills.CASES)))
    assert len(done) >= 30
    assert {kill.case for kill in done} == set(kills.CASES)
    assert all(kill.equal for kill in done), [kill for kill in done if not kill.equal]
