"""Batches: drawing again for signal, leaving out what is solved, and that neither goes on for ever."""

import json
import threading
from dataclasses import asdict

import pytest

from fake_problems import Known, encoded
from luffy import load_config
from luffy.reward import Verdict
from luffy.training.clock import Clock
from luffy.training.collector import Batch, Collector
from luffy.training.draw import ProblemRow, draw, seed_of
from luffy.types import Completion, Group, Problem, Rollout


class PlainTokenizer:
    def decode(self, ids, skip_special_tokens=False):
        return " ".join(map(str, ids))


class SkilledEngine:
    """Completion j of problem i is `[i, j]`; what it is worth decides the verifier of the test."""

    def __init__(self):
        self.calls = []

    def generate(self, prompt_ids, n, sampling):
        self.calls.append(([prompt[0] for prompt in prompt_ids], n, sampling.seed))
        return [[Completion((prompt[0], copy), (-0.5,) * 2, True) for copy in range(n)] for prompt in prompt_ids]


def collector(problems, right, method="on_policy", **overrides):
    """right: a function of (number of the problem, number of the completion)."""

    def submit(pairs):
        return Known([Verdict(right(*map(int, text.split())), text) for text, _ in pairs])

    overrides = {"rollout.group_size": 4, "problems_per_step": 4, "method": method} | overrides
    config = load_config(overrides=overrides)
    row = ProblemRow(problems, seed=config.seed, least=config.problems_per_step, drop_solved=config.data.drop_solved)
    return Collector(row, engine=SkilledEngine(), submit=submit, tokenizer=PlainTokenizer(), config=config)


def ids(groups):
    return [int(group.problem.id[1:]) for group in groups]


PROBLEMS = [encoded(number) for number in range(40)]
ORDER = [one.prompt_ids[0] for step in range(10) for one in draw(PROBLEMS, step, 4, "problems", 0)]


def even_teach(number, copy):
    """Even problems are solved by half of the rollouts, odd ones by none."""
    return number % 2 == 0 and copy % 2 == 0


def test_without_the_option_a_step_takes_what_comes():
    made = collector(PROBLEMS, even_teach)
    batches = [made.collect(step, Clock()) for step in (1, 2)]
    assert ids(batches[0].groups + batches[1].groups) == ORDER[:8]
    assert [(batch.replaced, batch.metrics) for batch in batches] == [([], {})] * 2


def test_groups_without_signal_are_replaced_by_the_next_problems_of_the_row():
    made = collector(PROBLEMS, even_teach, **{"rollout.redraw": 9})
    batch = made.collect(1, Clock())
    passed = made.row.position
    assert ids(batch.groups) == [number for number in ORDER[:passed] if number % 2 == 0]
    assert ids(batch.replaced) == [number for number in ORDER[:passed] if number % 2]
    assert len(batch.groups) == 4
    assert batch.metrics == {"groups/drawn": passed, "groups/redrawn": passed - 4, "groups/without_signal": 0}
    assert passed > 4  # else this seed shows nothing
    assert ids(made.collect(2, Clock()).drawn) != ids(batch.drawn)
    assert made.row.position > passed


def test_drawing_again_ends_when_nothing_has_signal():
    made = collector(PROBLEMS, lambda number, copy: False, **{"rollout.redraw": 2})
    batch = made.collect(1, Clock())
    assert ids(batch.groups) == ORDER[:4]  # the step goes on with what it has
    assert ids(batch.replaced) == ORDER[4:12]
    assert batch.metrics == {"groups/drawn": 12, "groups/redrawn": 8, "groups/without_signal": 4}


def test_groups_without_signal_fill_the_batch_in_the_order_of_drawing():
    only = ORDER[5]
    made = collector(PROBLEMS, lambda number, copy: number == only and copy == 0, **{"rollout.redraw": 1})
    batch = made.collect(1, Clock())
    assert ids(batch.groups) == [*ORDER[:3], only]
    assert batch.metrics["groups/without_signal"] == 3


def test_each_attempt_samples_anew():
    """Else a problem that is drawn twice in a step would repeat itself."""
    made = collector(PROBLEMS, lambda number, copy: False, **{"rollout.redraw": 2})
    made.collect(1, Clock())
    made.collect(2, Clock())
    assert len({seed for _, _, seed in made.engine.calls}) == 6


@pytest.mark.parametrize(
    ("method", "own", "trace", "replaced"),
    [
        ("luffy", False, 1.0, False),  # the trace stands out
        ("luffy", True, 1.0, True),
        ("luffy", False, 0.0, True),  # the trace is wrong too
        ("on_policy", False, 1.0, True),  # has no use for the trace
        ("rl_sft", True, 1.0, False),  # imitates the trace whatever its advantage
    ],
)
def test_what_signal_is_depends_on_the_method(method, own, trace, replaced):
    problems = [encoded(number, traces=1, reward=trace) for number in range(10)]
    batch = collector(problems, lambda number, copy: own, method, **{"rollout.redraw": 1}).collect(1, Clock())
    assert bool(batch.replaced) == replaced


# -- one step ahead


@pytest.fixture
def ahead():
    """A collector, and what it and the update did in which order."""
    log = []
    options = {"rollout.ahead": 1, "objective.importance_cap": 2.0}
    made = collector(PROBLEMS, even_teach, **options)
    generate = made.engine.generate
    started, updated = threading.Event(), threading.Event()

    def slow(*given):
        log.append("generate")
        started.set()
        assert updated.wait(10)
        log.append("generated")
        return generate(*given)

    made.engine.generate = slow
    return made, log, started, updated


def test_the_next_batch_is_made_while_the_policy_is_updated(ahead):
    made, log, started, updated = ahead
    clock = Clock()
    with made.ahead(2, clock):
        assert started.wait(10)
        log.append("update")
        updated.set()
    assert log == ["generate", "update", "generated"]
    batch = made.collect(2, Clock())
    assert ids(batch.groups) == ORDER[:4]
    assert batch.metrics == {"policy/staleness": 1.0}
    assert made.engine.calls == [(ORDER[:4], 4, seed_of("sample", 0, 2, 4))]  # sampled as step 2 would
    later = made.collect(3, Clock())  # no longer the one made ahead
    assert (ids(later.groups), later.metrics) == (ORDER[4:8], {"policy/staleness": 0.0})


def test_waiting_for_the_next_batch_is_time_for_generating(ahead):
    made, _, _, updated = ahead
    clock = Clock()
    threading.Timer(0.2, updated.set).start()
    with made.ahead(2, clock), clock("update"):
        pass
    metrics = clock.metrics()
    assert metrics["time/generate"] > 0.1 > metrics["time/update"]


def test_without_a_next_step_nothing_is_made(ahead):
    made, log, _, _ = ahead
    with made.ahead(None, Clock()):
        pass
    assert (made.ready, log) == (None, [])


def test_what_went_wrong_ahead_is_raised_after_the_update(ahead):
    made = ahead[0]
    made.engine.generate = lambda *_: 1 / 0
    reached = []
    with pytest.raises(ZeroDivisionError), made.ahead(2, Clock()):
        reached.append("update")
    assert reached == ["update"]


def test_a_batch_survives_being_written_down():
    problems = [encoded(number, traces=1) for number in range(40)]
    made = collector(problems, even_teach, "luffy", **{"rollout.redraw": 1, "data.drop_solved": 3})
    made.engine.generate = lambda prompts, n, _: [
        [Completion((prompt[0], copy), (-0.1 / 3, -1e-17), copy < 2) for copy in range(n)] for prompt in prompts
    ]
    batch = made.collect(1, Clock())
    read = Batch.of(json.loads(json.dumps(batch.record())), problems)
    assert plain(read) == plain(batch)
    assert [group.problem for group in read.drawn] == [group.problem for group in batch.drawn]


def plain(batch):
    """Lists and tuples alike."""
    return json.loads(json.dumps(asdict(batch)))


# -- leaving out what is solved


def visit(name, *rewards):
    own = [Rollout((1,), (2,), (-0.5,), False, True, reward, "") for reward in rewards]
    trace = Rollout((1,), (2,), (0.0,), True, True, 0.0, "")  # not an own rollout: does not count
    return Group(Problem(f"p{name}", "q", "a"), [*own, trace])


def drawn(row, count):
    return [one.prompt_ids[0] for one in row.draw(count)]


def test_a_row_is_the_endless_row_of_epochs():
    row = ProblemRow(PROBLEMS, seed=0, least=4)
    assert drawn(row, 7) + drawn(row, 1) + drawn(row, 32) == ORDER
    later = ProblemRow(PROBLEMS, seed=0, least=4, position=8)
    assert drawn(later, 32) == ORDER[8:]


def test_a_problem_solved_in_so_many_visits_in_a_row_is_left_out():
    row = ProblemRow(PROBLEMS, seed=0, least=4, drop_solved=2)
    row.note([visit(1, 1, 1), visit(2, 1, 1), visit(3, 1, 0)])
    assert row.solved == 0
    row.note([visit(1, 1, 1), visit(2, 0, 1), visit(3, 1, 1)])
    assert row.solved == 1
    row.note([visit(2, 1, 1)])  # its first after a failure
    assert row.solved == 1
    assert drawn(row, 39) == [number for number in ORDER if number != 1]
    resumed = ProblemRow(PROBLEMS, seed=0, least=4, drop_solved=2, position=row.position, visits=row.visits)
    assert drawn(resumed, 60) == drawn(row, 60)


def test_all_come_back_before_a_step_would_run_short(caplog):
    caplog.set_level("INFO", logger="luffy")
    row = ProblemRow(PROBLEMS[:5], seed=0, least=3, drop_solved=1)
    row.note([visit(0, 1), visit(1, 1)])
    assert row.solved == 2
    assert set(drawn(row, 6)) == {2, 3, 4}
    row.note([visit(2, 1)])
    assert row.solved == 0
    assert "3 of 5 problems are solved: all come back" in caplog.text
    assert set(drawn(row, 10)) == {0, 1, 2, 3, 4}


def test_too_few_problems_to_leave_any_out_is_said(caplog):
    row = ProblemRow(PROBLEMS[:3], seed=0, least=4, drop_solved=1)
    assert "data.drop_solved=1 has no effect: a step takes 4 problems, and there are 3" in caplog.text
    row.note([visit(number, 1) for number in range(3)])
    assert len(row.draw(4)) == 4


def test_a_collector_leaves_out_and_counts():
    made = collector(PROBLEMS[:8], lambda number, copy: number < 2, **{"data.drop_solved": 1})
    seen = [made.collect(step, Clock()) for step in range(1, 9)]
    assert seen[-1].metrics == {"problems/solved": 2}
    first = [number for batch in seen[:2] for number in ids(batch.groups)]
    assert sorted(first) == list(range(8))
    assert not {0, 1} & {number for batch in seen[2:] for number in ids(batch.groups)}
