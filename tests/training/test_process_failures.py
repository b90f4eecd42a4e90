"""Runs of two processes that real launchers start, and what becomes of them: finished, stopped, killed, hung."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from safetensors.torch import load_file

import luffy
from luffy import load_config
from luffy.training.checkpoint import list_checkpoints
from small_jobs import WAIT, Job, write_recipe
from small_runs import SMALL

pytestmark = pytest.mark.slow
CLUSTER = Path(__file__).parents[2] / "recipes/cluster"
LAUNCHERS = {
    "luffy": ["-m", "luffy", "train", "--processes", "2"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "luffy", "train"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "-m", "luffy", "train"],
}
SETTINGS = SMALL | {"policy.dtype": "float64", "checkpoint_every": 1, "rollouts_every": 0, "evaluation.every": 0}
ENDLESS = "steps=1000000"
TOLERANCE = 1e-4  # of a weight: the norms compute in float32, and AdamW divides by small numbers; weights move by 3e-3


@pytest.fixture
def recipe(tmp_path):
    return write_recipe(tmp_path / "small.yaml", SETTINGS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run of one process after so many steps; its model, unless another file of it is asked for."""
    known = {}

    def weights(steps, file="model/model.safetensors", **given):
        case = (steps, *given.items())
        if case not in known:
            known[case] = tmp_path_factory.mktemp("alone") / "run"
            luffy.train(load_config(overrides=SETTINGS | {"output": str(known[case]), "steps": steps} | given))
        return load_file(known[case] / file)

    return weights


def start(launcher, recipe, run, *given):
    return Job([sys.executable, *LAUNCHERS[launcher], recipe, f"output={run}", *given], run.with_suffix(".log"))


def wait_for_step(run, *jobs):
    """Wait until there is a checkpoint."""
    until = time.monotonic() + WAIT
    while not list_checkpoints(run):
        assert all(job.process.poll() is None for job in jobs), [job.said() for job in jobs]
        assert time.monotonic() < until, [job.said() for job in jobs]
        time.sleep(0.05)


def steps_done(run):
    return int(list_checkpoints(run)[-1].name.removeprefix("step-"))


def go_on(run, steps, **given):
    """Take the run up in this one process, up to so many steps."""
    luffy.train(load_config(overrides=SETTINGS | {"output": str(run), "steps": steps} | given))


def assert_trained(run, expected, file="model/model.safetensors"):
    assert json.loads((run / "summary.json").read_text())["status"] == "finished"
    ours = load_file(run / file)
    assert ours.keys() == expected.keys()
    assert max(float((ours[name] - expected[name]).abs().max()) for name in ours) < TOLERANCE


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_each_launcher_starts_the_same_run(launcher, recipe, tmp_path, alone):
    status, said = start(launcher, recipe, tmp_path / "run").wait()
    assert status == 0, said
    assert_trained(tmp_path / "run", alone(4))
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["hardware"]["processes"] == 2


def test_split_weights_train_the_same_and_go_on_in_one_process(recipe, tmp_path, alone):
    run = tmp_path / "run"
    status, said = start("luffy", recipe, run, "parallel.sharding=full", "steps=2").wait()
    assert status == 0, said
    assert_trained(run, alone(2))
    go_on(run, 3)
    assert_trained(run, alone(3))
    status, said = start("luffy", recipe, run, "parallel.sharding=full", "steps=4").wait()
    assert status == 0, said
    assert_trained(run, alone(4))


IN_PARTS = ("parallel.sharding=full", "parallel.checkpoint=sharded")


def parts_of(checkpoint):
    return sorted((checkpoint / "parts").glob("*.safetensors"))


def test_checkpoints_in_parts_go_on_in_any_number_of_processes(recipe, tmp_path, alone):
    run = tmp_path / "run"
    for steps, processes, given in [(1, 2, IN_PARTS), (2, 3, IN_PARTS), (3, 1, ()), (4, 2, IN_PARTS), (5, 2, ())]:
        job = Job(
            [sys.executable, "-m", "luffy", "train", recipe, f"output={run}", f"steps={steps}", *given]
            + (["--processes", str(processes)] if processes > 1 else []),
            tmp_path / "log",
        )
        status, said = job.wait()
        assert status == 0, said
        newest = list_checkpoints(run)[-1]
        assert len(parts_of(newest)) == (processes if given else 0)
        assert (newest / "model").exists() == (not given)
        assert_trained(run, alone(steps))
    assert {path.suffix for path in run.rglob("checkpoints/**/*") if path.is_file()} <= {".safetensors", ".json", ""}


ADAPTER, ADAPTER_FILE = {"adapter.rank": 4, "objective.kl_coefficient": 0.1}, "adapter/adapter_model.safetensors"


def test_an_adapter_beside_split_weights_is_trained_saved_merged_and_goes_on(recipe, tmp_path, alone):
    run, given = tmp_path / "run", [f"{key}={value}" for key, value in ADAPTER.items()]
    for steps, more in [(1, IN_PARTS), (2, ("parallel.sharding=full",)), (3, ()), (4, IN_PARTS)]:
        if more:
            status, said = start("luffy", recipe, run, f"steps={steps}", *given, *more).wait()
            assert status == 0, said
        else:
            go_on(run, steps, **ADAPTER)
        for file in ("model/model.safetensors", ADAPTER_FILE):
            assert_trained(run, alone(steps, file, **ADAPTER), file)
    whole, in_parts = list_checkpoints(run)
    assert (whole / ADAPTER_FILE).exists()
    base = Path(luffy.__file__).parent / "assets/miniature/model.safetensors"
    assert sum(part.stat().st_size for part in parts_of(in_parts)) < base.stat().st_size


def test_of_a_damaged_part_the_checkpoint_before_is_used(recipe, tmp_path, alone):
    run = tmp_path / "run"
    status, said = start("luffy", recipe, run, "steps=2", *IN_PARTS).wait()
    assert status == 0, said
    part = parts_of(list_checkpoints(run)[-1])[-1]
    part.write_bytes(part.read_bytes()[:-1])
    status, said = start("luffy", recipe, run, "steps=3", *IN_PARTS).wait()
    assert status == 0, said
    assert f"step-000002 is damaged (parts/{part.name} is not as it was written)" in said
    assert_trained(run, alone(3))


def test_killed_while_parts_are_written_a_run_goes_on(recipe, tmp_path, alone):
    run = tmp_path / "run"
    job = start("luffy", recipe, run, ENDLESS, *IN_PARTS)
    wait_for_step(run, job)
    ranks = job.ranks()
    until = time.monotonic() + WAIT
    while not (written := list(run.glob("checkpoints/*.part/parts/*"))):
        assert time.monotonic() < until, job.said()
    for process in ranks.values():
        process.kill()
    job.end()
    (part,) = run.glob("checkpoints/*.part")
    assert part in written[0].parents
    steps = steps_done(run) + 1
    status, said = start("luffy", recipe, run, f"steps={steps}", *IN_PARTS).wait()
    assert status == 0, said
    assert not part.exists()
    assert_trained(run, alone(steps))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_cannot_write_its_part_stops_all(rank, recipe, tmp_path, alone):
    run = tmp_path / "run"
    job = start("luffy", recipe, run, ENDLESS, *IN_PARTS)
    wait_for_step(run, job)
    most = min(part.stat().st_size for part in parts_of(list_checkpoints(run)[-1])) // 2
    job.ranks()[rank].rlimit(psutil.RLIMIT_FSIZE, (most, most))  # what it writes from now on may not be larger
    status, said = job.wait()
    assert status == 1, said
    assert "cannot be written (File too large). The last good checkpoint is" in said
    assert "Traceback" not in said
    assert not list(run.glob("checkpoints/*.part"))
    steps = steps_done(run) + 1
    go_on(run, steps)
    assert_trained(run, alone(steps))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(rank, recipe, tmp_path, alone):
    run = tmp_path / "run"
    job = start("luffy", recipe, run, ENDLESS)
    wait_for_step(run, job)
    others = job.ranks()
    others.pop(rank).send_signal(signal.SIGKILL)
    status, said = job.wait()
    assert status == 1, said
    assert f"process {rank} of 2 was killed (SIGKILL)" in said or "another of the 2 processes has ended" in said, said
    assert "Traceback" not in said
    assert not any(other.is_running() for other in others.values())
    steps = steps_done(run) + 1
    go_on(run, steps)
    assert_trained(run, alone(steps))


@pytest.mark.parametrize(("launcher", "expected"), [("luffy", 143), ("torchrun", 1)])
def test_asked_to_stop_it_leaves_a_checkpoint(launcher, expected, recipe, tmp_path, alone):
    run = tmp_path / "run"
    job = start(launcher, recipe, run, ENDLESS)
    wait_for_step(run, job)
    job.process.terminate()
    status, said = job.wait()
    assert status == expected, said
    assert "(termination requested); the same command goes on from there." in said
    told = json.loads((run / "summary.json").read_text())
    assert (told["status"], told["steps"]) == ("stopped", steps_done(run))
    go_on(run, told["steps"] + 1)
    assert_trained(run, alone(told["steps"] + 1))


def test_a_process_that_hangs_is_not_waited_for_forever(recipe, tmp_path):
    run = tmp_path / "run"
    job = start("luffy", recipe, run, ENDLESS, "parallel.timeout=30")
    wait_for_step(run, job)
    job.ranks()[1].suspend()
    status, said = job.wait()
    assert status == 1, said
    assert "did not answer within parallel.timeout=30 seconds" in said
    assert "The last good checkpoint is" in said


@pytest.mark.parametrize("launcher", ["luffy", "torchrun"])
def test_more_processes_than_problems_are_refused_once(launcher, recipe, tmp_path):
    job = start(launcher, recipe, tmp_path / "run", "problems_per_step=1", "updates_per_step=1")
    status, said = job.wait()
    assert status != 0
    assert said.count("problems_per_step") == 1, said
    assert not (tmp_path / "run").exists()


# -- two machines, as two launchers on loopback


def start_machines(recipe, run, *given):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"NODES": "2", "PER_NODE": "1", "PORT": port, "PYTHON": sys.executable, "LAST_STEP": "60"}
    command = ["bash", CLUSTER / "torchrun.sh", recipe, f"output={run}", *given]
    return [Job(command, run.with_suffix(f".{node}.log"), NODE=str(node), **shared) for node in range(2)]


@pytest.mark.parametrize("dead", [0, 1])
def test_a_machine_that_dies_ends_the_job_and_the_next_one_goes_on(dead, recipe, tmp_path, alone):
    run = tmp_path / "run"
    machines = start_machines(recipe, run, ENDLESS, "parallel.timeout=60")
    wait_for_step(run, *machines)
    machines[dead].end()
    status, said = machines[1 - dead].wait()
    assert status != 0
    assert "another of the 2 processes has ended" in said, said
    assert "The last good checkpoint is" in said
    steps = steps_done(run) + 1
    for status, said in [machine.wait() for machine in start_machines(recipe, run, f"steps={steps}")]:
        assert status == 0, said
    assert_trained(run, alone(steps))


SRUN = """#!/usr/bin/env bash
# Starts two tasks, as srun does, and hands SIGTERM on to them.
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
export SLURM_NTASKS=2
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & second=$!
trap 'kill -TERM $first $second' TERM
wait $first; status=$?
while kill -0 $first 2>/dev/null; do wait $first; status=$?; done
wait $second
exit $status
"""
SCONTROL = """#!/usr/bin/env bash
[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> "$CALLS"
"""


def test_the_slurm_script_asks_for_another_turn_when_it_is_stopped(recipe, tmp_path, alone):
    for name, content in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    run, calls = tmp_path / "run", tmp_path / "calls"
    calls.touch()
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": sys.executable, "CALLS": str(calls)}
    environment |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NODELIST": "here"}

    def submit(*given):
        return Job(["bash", CLUSTER / "slurm.sh", recipe, f"output={run}", *given], tmp_path / "log", **environment)

    job = submit(ENDLESS)
    wait_for_step(run, job)
    for process in job.ranks().values():
        process.terminate()
    status, said = job.wait()
    assert (status, calls.read_text()) == (143, f"requeue {os.getpid()}\n"), said
    steps = steps_done(run) + 1
    status, said = submit(f"steps={steps}").wait()
    assert (status, calls.read_text()) == (0, f"requeue {os.getpid()}\n"), said
    assert_trained(run, alone(steps))
