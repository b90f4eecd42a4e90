"""Runs of two processes that generate with one vLLM server, or each with vLLM within it: `make test-vllm`."""

import json
import os
import signal
import sys
import time
from functools import partial

import psutil
import pytest
from safetensors.torch import load_file

import luffy
from luffy import ConfigError, load_config
from luffy.policy import load_model, model_folder
from luffy.rollout.vllm_launch import LaunchedServer
from luffy.rollout.vllm_settings import model_settings
from luffy.training.checkpoint import list_checkpoints
from luffy.training.world import World, _check
from small_engines import needs_vllm
from small_jobs import WAIT, Job, write_recipe
from small_runs import SMALL, lines

SETTINGS = SMALL | {
    "rollout.engine": "vllm_server",
    "rollout.vllm.eager": True,
    "rollout.vllm.cache_gib": 0.25,
    "rollouts_every": 1,
    "steps": 3,
}
TOLERANCE = 2e-4  # of a weight in float32: AdamW divides by small numbers; in three steps weights move by 3e-3


class Served:
    """A server that several runs use, one after the other."""

    def __init__(self, folder):
        config = load_config(overrides=SETTINGS)
        settings = model_settings(config, load_model(config.model, config.policy))
        self._start = partial(LaunchedServer, model_folder(config.model), settings, folder / "vllm.log")
        self.process = self._start()
        self.given = {"rollout.vllm.server": self.process.url}

    def start_anew(self):
        self.process.close()
        self.process = self._start(port=int(self.process.url.rpartition(":")[2]))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    one = Served(tmp_path_factory.mktemp("served"))
    yield one
    one.process.close()


@pytest.fixture(scope="module")
def alone(served, tmp_path_factory):
    """The run of one process of so many steps."""
    known = {}

    def run(steps=3):
        if steps not in known:
            known[steps] = tmp_path_factory.mktemp("alone") / "run"
            given = SETTINGS | served.given | {"steps": steps, "output": str(known[steps])}
            luffy.train(load_config(overrides=given))
        return known[steps]

    return run


def start(run, **settings):
    """Two processes."""
    recipe = write_recipe(run.parent / "recipe.yaml", SETTINGS | {"output": str(run)} | settings)
    return Job([sys.executable, "-m", "luffy", "train", "--processes", "2", recipe], run.with_suffix(".log"))


def drawn(run):
    """What was sampled in each step and in the evaluations."""
    return {
        str(path.relative_to(run)): [line.get("samples") or [one["text"] for one in line["rollouts"]] for line in found]
        for kind in ("rollouts/*", "evaluations/*/*")
        for path in sorted(run.glob(kind))
        if (found := lines(path))
    }


def difference(run, other):
    ours, theirs = (load_file(path / "model/model.safetensors") for path in (run, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def wait_for_step(run, job):
    until = time.monotonic() + WAIT
    while not lines(run / "metrics.jsonl"):
        assert job.process.poll() is None, job.said()
        assert time.monotonic() < until, job.said()
        time.sleep(0.05)


def gaps(run):
    return [line["policy/engine_gap"] for line in lines(run / "metrics.jsonl")]


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("engine", ["vllm_server", "vllm"])
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_two_processes_draw_and_learn_what_one_does(engine, sharding, served, alone, tmp_path):
    run = tmp_path / "run"
    where = served.given if engine == "vllm_server" else {"rollout.engine": "vllm"}
    status, said = start(run, **where, **{"parallel.sharding": sharding}).wait()
    assert status == 0, said
    assert "Traceback" not in said
    assert "sent again" not in said
    assert drawn(run) == drawn(alone())
    assert len(drawn(run)) == 3 + 3  # steps, and evaluations at the start, after two steps, and at the end
    assert difference(run, alone()) < TOLERANCE
    assert max(gaps(run)) < 1e-4  # of every process, to the newest weights


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("engine", ["vllm_server", "vllm"])
def test_two_processes_generate_one_step_ahead(engine, served, tmp_path):
    run = tmp_path / "run"
    where = served.given if engine == "vllm_server" else {"rollout.engine": "vllm"}
    status, said = start(run, **where, **{"rollout.ahead": 1, "objective.importance_cap": 2.0}).wait()
    assert status == 0, said
    assert [line["policy/staleness"] for line in lines(run / "metrics.jsonl")] == [0, 1, 1]


@pytest.mark.slow
@needs_vllm
def test_an_adapter_by_itself_reaches_both(tmp_path):
    pytest.importorskip("peft")
    run = tmp_path / "run"
    status, said = start(run, **{"adapter.rank": 4, "rollout.vllm.lora": True}).wait()
    assert status == 0, said
    assert len(gaps(run)) == 3
    assert max(gaps(run)) < 1e-4


@pytest.mark.slow
@needs_vllm
def test_a_run_outlives_a_server_that_is_started_anew(served, tmp_path):
    run = tmp_path / "run"
    job = start(run, **served.given, steps=12)
    wait_for_step(run, job)
    served.start_anew()
    status, said = job.wait()
    assert status == 0, said
    assert "tried again" in said, said
    assert said.count("has lost this run's weights; they are sent again") <= 1, said  # none: it died in an update
    assert len(gaps(run)) == 12
    assert max(gaps(run)) < 1e-4  # of the weights that a server starts with: 1e-2 after one step


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_server_that_dies_ends_both_with_a_checkpoint_and_one_message(sharding, alone, tmp_path):
    run = tmp_path / "run"
    job = start(run, steps=1000000, **{"parallel.sharding": sharding})
    wait_for_step(run, job)
    (server,) = [one for one in psutil.Process(job.process.pid).children(recursive=True) if _serves(one)]
    os.killpg(server.pid, signal.SIGKILL)
    killed = time.monotonic()
    status, said = job.wait()
    assert status == 1, said
    assert time.monotonic() - killed < 120  # and not after rollout.vllm.patience
    assert said.count("vLLM's server has ended") == said.count("The last good checkpoint is") == 1, said
    assert "Traceback" not in said
    told = json.loads((run / "summary.json").read_text())
    done = len(lines(run / "metrics.jsonl"))
    assert (told["status"], told["steps"]) == ("failed", done)
    assert list_checkpoints(run)[-1].name == f"step-{done:06d}"
    status, said = start(run, steps=done + 1, **{"parallel.sharding": sharding}).wait()
    assert status == 0, said
    assert difference(run, alone(done + 1)) < done * TOLERANCE


def _serves(process):
    return "luffy.rollout.vllm_child" in process.cmdline() and os.getpgid(process.pid) == process.pid


def test_a_server_that_other_machines_would_not_reach_is_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    config = load_config(overrides={"rollout.engine": "vllm_server"})
    with pytest.raises(ConfigError, match="no other machine reaches"):
        _check(2, config)
    _check(2, load_config(overrides={"rollout.engine": "vllm_server", "rollout.vllm.server": "http://first:8000"}))


def test_of_several_processes_one_has_the_turn(monkeypatch):
    import torch.distributed as dist

    kept = dist.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(kept.port))
    first, second = World(0, 2), World(1, 2)
    with first.turn("weights") as ours:
        assert ours
        with second.turn("weights") as theirs, first.turn("other") as another:
            assert (theirs, another) == (False, True)
    with second.turn("weights") as theirs:
        assert theirs
    with pytest.raises(KeyError), second.turn("weights"):  # which ends it, too
        raise KeyError
    with first.turn("weights") as ours:
        assert ours
