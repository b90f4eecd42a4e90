"""Several processes train as one: the same weights, whatever is dealt to whom (see benchmarks/processes.py)."""

import processes
import pytest

from luffy import ConfigError, load_config
from luffy.policy import deal_rows
from luffy.rollout import Sampling, TransformersEngine
from luffy.training.world import World, _check
from tiny_models import build_model

CASES = ["luffy", "sft", "rl_sft", "luffy, 2 updates, capped"]


@pytest.fixture(scope="module")
def of_two():
    return processes.in_processes(2, CASES, ["float64"], list(processes.WRAPPERS))


@pytest.mark.parametrize("wrapper", processes.WRAPPERS)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case, wrapper, of_two):
    alone, ours = processes.train(processes.cases()[case], "float64"), of_two[case, "float64", wrapper]
    assert ours["held"] == {"ddp": 1, "fsdp2": 0.5}[wrapper]
    assert processes.largest_difference(alone["weights"], ours["weights"]) < 1e-9
    assert ours["alike"]
    assert ours["tokens"] == alone["tokens"]
    for one, other in zip(ours["metrics"], alone["metrics"], strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-12)


@pytest.mark.slow
def test_the_whole_table():
    rows = processes.compare([2, 4], list(processes.cases()), ["float64", "float32"], list(processes.WRAPPERS))
    assert not [row for row in rows if not row["equal"]]


def test_every_row_is_dealt_once_and_loads_are_even():
    prompts = [[group] * 5 for group in range(8) for _ in range(6)]
    completions = [[1] * (1 + (7 * row) % 23) for row in range(48)]
    shares = deal_rows(prompts, completions, 3)
    assert sorted(row for share in shares for row in share) == list(range(48))
    loads = [sum(5 + len(completions[row]) for row in share) for share in shares]
    assert max(loads) < 1.25 * min(loads)
    assert deal_rows([[1]], [[2]], 3) == [[0], [], []]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_sample_what_one_process_samples(size):
    engine = TransformersEngine(build_model(), eos_ids=(2,), pad_id=0)
    prompts = [[3 + place, 5, 7] for place in range(4)]
    whole = engine.generate(prompts, 2, Sampling(max_tokens=12, seed=5))
    ours = []
    for rank in range(size):
        share = World(rank, size).share(len(prompts))
        sampling = Sampling(max_tokens=12, seed=5, first=share.start)
        ours += engine.generate(prompts[share.start : share.stop], 2, sampling)
    assert [[one.token_ids for one in group] for group in ours] == [[one.token_ids for one in group] for group in whole]


def test_a_number_that_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="processes=4, but 2 were started"):
        _check(2, load_config(overrides={"processes": 4}))
    with pytest.raises(ConfigError, match="17 processes are more than the problems of a step"):
        _check(17, load_config())
