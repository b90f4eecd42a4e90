"""DeepSpeed's ZeRO trains as one process does (see benchmarks/processes.py), and what becomes of steps that go wrong.

`make test-deepspeed` installs the package. It has no float64 here, so what is compared are weights in float32: they
move by 3e-3, and AdamW divides by small numbers.
"""

import json
import os
import socket
import sys
from dataclasses import replace
from importlib.util import find_spec

import processes
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_processes import imitated_by_hand, means_of_means

import luffy
from luffy import load_config
from luffy.training import learner as learning
from luffy.training.checkpoint import list_checkpoints
from luffy.training.dealing import rounds
from luffy.training.groups import assign_advantages
from luffy.training.world import World, disconnect
from small_jobs import Job, write_recipe
from small_runs import SMALL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed: `make test-deepspeed`"),
]
CASES = ["luffy", "sft", "rl_sft", "sft_rl", "luffy, 2 updates, capped", "luffy, entropy and KL"]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def of_two():
    return processes.in_processes(2, CASES, ["float32"], processes.ZERO)


@pytest.mark.parametrize("wrapper", processes.ZERO)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, wrapper, of_two):
    alone, ours = processes.train_alone(case, "float32"), of_two[case, "float32", wrapper]
    assert processes.largest_difference(alone["weights"], ours["weights"]) < CLOSE
    assert ours["alike"]
    assert ours["tokens"] == alone["tokens"]
    for one, other in zip(ours["metrics"], alone["metrics"], strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("wrapper", processes.ZERO)
def test_every_token_of_every_micro_batch_counts_the_same(wrapper, of_two):
    """What two published defects of SFT baselines got wrong (arXiv 2604.23747): see below."""
    assert processes.largest_difference(imitated_by_hand(), of_two["sft", "float32", wrapper]["weights"]) < CLOSE


# -- in two processes of this file's own


def in_two_processes(function, folder):
    """Call function(world, folder) in each of two processes; the first one leaves something in the folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torch.multiprocessing.spawn(_connected, (port, function, folder), nprocs=2)


def _connected(rank, port, function, folder):
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ.update(ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
    torch.set_num_threads(1)
    world = World.open(load_config(overrides={"policy.device": "cpu", "parallel.timeout": 600}))
    function(world, folder)
    world.gather(None)
    disconnect()


def only_the_first_micro_batch(rounds):
    yield replace(next(rounds), last=True)


DEFECTS = {"first": only_the_first_micro_batch, "means": means_of_means}


def train_with_defects(world, folder):
    for name, defect in DEFECTS.items():
        learning.rounds = lambda *of_update, defect=defect: defect(rounds(*of_update))
        settings = processes.cases()["sft"] | processes.WRAPPERS["zero2, offloaded"]
        found = processes.train(settings, "float32", world)
        if world.main:
            save_file(found["weights"], folder / name)


def test_the_published_defects_would_be_seen(tmp_path):
    in_two_processes(train_with_defects, tmp_path)
    for name in DEFECTS:
        assert processes.largest_difference(imitated_by_hand(), load_file(tmp_path / name)) > 10 * CLOSE, name


BAD = ("none", "advantage", "gap")  # in which the loss is not finite; in which what the engine said is not


def take_bad_steps(world, folder):
    for wrapper in processes.ZERO:
        for bad in BAD:
            _take_a_bad_step(world, folder / f"{wrapper}, {bad}", wrapper, bad)


def _take_a_bad_step(world, path, wrapper, bad):
    """A step that is not finite and a good one, or the good one alone; the weights before, between and after."""
    settings = processes.SETTINGS | {"method": "luffy"} | processes.WRAPPERS[wrapper]
    learner, _ = processes.make_learner(load_config(overrides=settings), "float32", world)
    groups = processes.build_groups()
    assign_advantages(groups, learner.method, learner.config)
    learner.start_phase("rl", 0, processes.STEPS)
    found, metrics = [learner.wrapper.whole_weights()], []
    numbers = {"advantage": groups[0].advantages, "gap": groups[0].rollouts[0].behavior_logprobs}
    if bad in numbers:
        right, numbers[bad][0] = numbers[bad][0], float("nan")
        metrics.append(learner.update(groups, 0))
        numbers[bad][0] = right
    found.append(learner.wrapper.whole_weights())
    metrics.append(learner.update(groups, 0))
    found.append(learner.wrapper.whole_weights())
    moments = learner.wrapper.whole_moments(learner.optimizer)
    if world.main:
        named = {f"{place} {name}": weight for place, one in enumerate(found) for name, weight in one.items()}
        save_file(named | {f"moments {name}": moment for name, moment in moments.items()}, path)
        path.with_suffix(".json").write_text(json.dumps(metrics))


@pytest.fixture(scope="module")
def bad_steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    in_two_processes(take_bad_steps, folder)
    return folder


@pytest.mark.parametrize("wrapper", processes.ZERO)
def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace(wrapper, bad_steps):
    expected = load_file(bad_steps / f"{wrapper}, none")
    for bad in ("advantage", "gap"):
        found = load_file(bad_steps / f"{wrapper}, {bad}")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)  # also moments, and how many steps
        skipped, good = json.loads((bad_steps / f"{wrapper}, {bad}.json").read_text())
        assert (skipped["update/skipped"], good["update/skipped"]) == (1, 0)
        assert "update/gradient_norm" not in skipped
    before = [name for name in expected if name.startswith("0 ")]
    assert all(torch.equal(expected[name], expected[f"1{name[1:]}"]) for name in before)
    assert any(not torch.equal(expected[name], expected[f"2{name[1:]}"]) for name in before)


# -- runs

SETTINGS = SMALL | {"policy.device": "cpu", "checkpoint_every": 2, "keep_checkpoints": 9, "evaluation.every": 0}


def train(path, run, steps, count=2, **given):
    """A run of several processes by the command line."""
    recipe = write_recipe(path / "small.yaml", SETTINGS)
    settings = [f"{key}={value}" for key, value in given.items()]
    command = [sys.executable, "-m", "luffy", "train", "--processes", str(count), recipe]
    command += [f"output={run}", f"steps={steps}"]
    status, said = Job([*command, *settings], run.with_suffix(".log")).wait()
    assert status == 0, said
    return said


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights after four steps of one process."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    luffy.train(load_config(overrides=SETTINGS | {"output": str(run), "steps": 4}))
    return load_file(run / "model/model.safetensors")


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
def test_a_run_goes_on_bitwise(sharding, tmp_path, uninterrupted):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(tmp_path, whole, 4, **{"parallel.sharding": sharding})
    train(tmp_path, cut, 2, **{"parallel.sharding": sharding})
    for name in ("model/model.safetensors", "optimizer.safetensors"):
        one, two = (load_file(run / "checkpoints/step-000002" / name) for run in (whole, cut))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)
    said = train(tmp_path, cut, 4, **{"parallel.sharding": sharding})
    assert "going on after step 2" in said
    expected, again = (load_file(run / "model/model.safetensors") for run in (whole, cut))
    assert all(torch.equal(again[name], weight) for name, weight in expected.items())
    assert processes.largest_difference(expected, uninterrupted) < 2e-4


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ((1, "none"), (2, "zero1")), ((1, "none"), (2, "zero3")),
        ((2, "zero2"), (1, "none")), ((2, "zero3"), (1, "none")),
        ((2, "none"), (2, "zero2")), ((2, "zero1"), (2, "none")),
        ((2, "full"), (2, "zero2")), ((2, "zero2"), (2, "full")),
        ((2, "zero2"), (2, "zero3")), ((2, "zero3"), (2, "zero1")),
        ((2, "zero2"), (3, "zero2")), ((3, "zero3"), (2, "zero3")),
    ],
)  # fmt: skip
def test_a_run_goes_on_by_another_wrapper_or_in_another_number_of_processes(first, then, tmp_path, uninterrupted):
    for steps, (count, sharding) in ((2, first), (4, then)):
        said = train(tmp_path, tmp_path / "run", steps, count, **{"parallel.sharding": sharding})
    assert "going on after step 2" in said
    assert len(list_checkpoints(tmp_path / "run")) == 2
    ours = load_file(tmp_path / "run" / "model/model.safetensors")
    assert processes.largest_difference(ours, uninterrupted) < 2e-4
