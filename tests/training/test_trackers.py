"""Trackers get what metrics.jsonl has; one that is missing, raises or hangs is named once and never in the way."""

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import pytest

from luffy import ConfigError, load_config, train
from luffy.training import trackers
from luffy.training.trackers import Trackers

SMALL = {
    "steps": 3, "problems_per_step": 2, "rollout.group_size": 3, "rollout.max_tokens": 30, "reward.workers": 0,
    "data.miniature.problems": 4, "data.miniature.traced": 4, "data.on_long_trace": "drop", "method": "on_policy",
    "evaluation.benchmarks": ["miniature/short"], "evaluation.limit": 3, "evaluation.max_tokens": 6,
}  # fmt: skip


class Fake:
    """Keeps what it is told; does with a step what it is told to."""

    def __init__(self, on_log=lambda step: None):
        self.on_log, self.logged, self.finished = on_log, [], False

    def log(self, values, step=None):
        self.on_log(step)
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_installed", lambda name: True)
    return load_config(overrides={"tracker": "wandb", "output": str(tmp_path)})


@pytest.fixture
def warned(caplog):
    """The warnings so far."""
    caplog.set_level(logging.WARNING)
    return lambda: [record.getMessage() for record in caplog.records if "tracker=" in record.getMessage()]


def follow(config, fake, steps, evaluations=(), first=1):
    with Trackers(config, start=lambda name, config, step: fake) as running:
        tell = running.following(None)
        for step in range(first, first + steps):
            tell(step, steps, {"phase": "rl", "update/loss": step / 2, "update/skipped": False, "accuracy": 0.5})
            with open(f"{config.output}/evaluations.jsonl", "a") as file:
                for line in evaluations:
                    if line["step"] == step:
                        file.write(json.dumps(line) + "\n")


def test_numbers_of_every_step_in_order(config, warned):
    fake = Fake()
    follow(config, fake, 4)
    assert fake.logged == [(step, {"update/loss": step / 2}) for step in (1, 2, 3, 4)]
    assert fake.finished
    assert warned() == []


def test_evaluations_once_and_those_of_an_earlier_start_not_again(config, tmp_path):
    line = {"set": "s", "avg@1": {"value": 0.25, "low": 0, "high": 1, "n": 4}, "tokens/trained": 7}
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(line | {"step": 3}) + "\n")
    fake = Fake()
    follow(config, fake, 3, [line | {"step": 5}, line | {"step": 6}], first=4)
    assert [item for item in fake.logged if "s/avg@1" in item[1]] == [(5, {"s/avg@1": 0.25}), (6, {"s/avg@1": 0.25})]


def test_the_base_is_told_in_a_run_that_starts(config, tmp_path):
    line = {"step": 0, "set": "s", "avg@1": {"value": 0.25}}
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(line) + "\n")
    fake = Fake()
    follow(config, fake, 1)
    assert fake.logged[0] == (0, {"s/avg@1": 0.25})


def test_mlflow_gets_names_that_it_takes(tmp_path, monkeypatch):
    assert trackers._named_for("mlflow", {"s/avg@1": 1.0}) == {"s/avg_at_1": 1.0}
    assert trackers._named_for("wandb", {"s/avg@1": 1.0}) == {"s/avg@1": 1.0}


def failing(step):
    raise SystemExit("no network\nmore lines")


@pytest.mark.parametrize("where", ["at the start", "later"])
def test_one_that_raises_is_named_once(config, warned, where):
    fake = Fake(failing)

    def refuse(name, config, step):
        failing(step)

    with Trackers(config, start=refuse if where == "at the start" else lambda *_: fake) as running:
        tell = running.following(None)
        for step in range(1, 50):
            tell(step, 50, {"update/loss": 1.0})
    (warning,) = warned()
    assert "tracker=wandb failed (SystemExit: no network)" in warning
    assert "metrics.jsonl has everything" in warning


def test_one_that_hangs_does_not_hold_the_run_up(config, warned, monkeypatch):
    monkeypatch.setattr(trackers, "PATIENCE", 0.2)
    gate = threading.Event()
    began = time.monotonic()
    follow(config, Fake(lambda step: gate.wait(30)), 50)
    assert time.monotonic() - began < 5
    gate.set()
    (warning,) = warned()
    assert "tracker=wandb does not answer" in warning


def test_one_that_is_slow_does_not_pile_up_without_end(config, warned, monkeypatch):
    monkeypatch.setattr(trackers, "WAITING", 5)
    gate = threading.Event()
    with Trackers(config, start=lambda *_: Fake(lambda step: gate.wait(30))) as running:
        tell = running.following(None)
        for step in range(1, 20):
            tell(step, 20, {"update/loss": 1.0})
        (warning,) = warned()
        gate.set()
    assert "tracker=wandb is 5 records behind" in warning
    assert len(warned()) == 1


def test_without_trackers_nothing_is_in_between(tmp_path):
    def on_step(step, steps, metrics): ...

    with Trackers(load_config(overrides={"output": str(tmp_path)})) as running:
        assert running.following(on_step) is on_step


def test_a_folder_named_like_a_package_is_no_package(tmp_path, monkeypatch, warned):
    """wandb leaves `wandb/` in the working folder, from which Python imports it as an empty package."""
    (tmp_path / "mlflow_of_nobody").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trackers.INSTALL, "mlflow_of_nobody", "pip install it")
    assert not trackers._installed("mlflow_of_nobody")
    assert len(warned()) == 1


def test_an_unknown_tracker_is_a_mistake():
    with pytest.raises(ConfigError, match=r"'tracker\.0' input should be 'tensorboard'"):
        load_config(overrides={"tracker": "tensorbord"})


def test_a_run_with_tensorboard_and_one_that_is_not_installed(tmp_path, warned):
    pytest.importorskip("tensorboard")
    missing = next((name for name in ("trackio", "mlflow", "wandb") if find_spec(name) is None), None)
    if missing is None:
        pytest.skip("every tracker is installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = SMALL | {"output": str(tmp_path), "tracker": ["tensorboard", missing]}
    assert train(load_config(overrides=settings)).status == "finished"
    (warning,) = warned()
    assert f"tracker={missing}: the package is not installed" in warning
    assert f"pip install {missing}" in warning
    events = EventAccumulator(str(tmp_path / "trackers/tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in ("update/loss", "reward/on_policy", "tokens/trained"):
        shown = [(event.step, event.value) for event in events.Scalars(name)]
        assert shown == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines]
    assert [event.step for event in events.Scalars("miniature/short/avg@1")] == [0, 3]
    train(load_config(overrides=settings | {"tracker": []}))  # who looks on is no part of what a run is


def test_a_tracker_changes_nothing_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_installed", lambda name: True)
    asked = []
    monkeypatch.setattr(trackers, "start_tracker", lambda name, *_: asked.append(name) or Fake(failing))
    for name, tracker in (("with", ["mlflow"]), ("without", [])):
        train(load_config(overrides=SMALL | {"output": str(tmp_path / name), "tracker": tracker}))
    one, other = ((tmp_path / name / "model/model.safetensors").read_bytes() for name in ("with", "without"))
    assert one == other
    assert asked == ["mlflow"]


HANGS = """
import atexit, os, time
from luffy.training import trackers

def hang(*_):
    if {signal}:
        os.kill(os.getpid(), {signal})
    atexit.register(time.sleep, 600)
    time.sleep(600)

trackers.start_tracker, trackers.PATIENCE, trackers._installed = hang, 0.2, lambda name: True
from luffy.cli import main
main()
"""


@pytest.mark.parametrize(("number", "status"), [(0, 0), (signal.SIGTERM, 143)])
def test_a_tracker_that_hangs_even_at_the_end_of_the_program_is_left(number, status, tmp_path):
    """What the command says, its exit status and the run folder are whole, and the folder is free."""
    settings = SMALL | {"output": str(tmp_path / "run"), "tracker": ["wandb"], "steps": 3 if number == 0 else 100}
    (tmp_path / "empty.yaml").write_text("model: miniature\n")
    given = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
    done = subprocess.run(
        [sys.executable, "-c", HANGS.format(signal=int(number)), "train", tmp_path / "empty.yaml", *given, "--json"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == status, done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((tmp_path / "run/summary.json").read_text())
    assert done.stderr.count("tracker=wandb does not answer") == 1
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == summary["steps"]
    steps = summary["steps"] + 1
    assert train(load_config(overrides=settings | {"tracker": [], "steps": steps})).steps == steps
