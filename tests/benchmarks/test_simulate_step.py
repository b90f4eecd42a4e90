"""The simulator of a step, against answers worked out by hand."""

import json

import pytest
from simulate_step import Constants, calibrate, compare, deal, decode, draw_lengths, simulate, verify

PLAIN = Constants(decode_step=1.0, decode_row=0.5)


def test_equal_rows_end_together():
    assert decode([4, 4], PLAIN) == [8.0, 8.0]  # four steps of 1 + 2 x 0.5 seconds


def test_rows_that_ended_cost_nothing_any_more():
    assert decode([2, 6], PLAIN) == [4.0, 4.0 + 4 * 1.5]


def test_waiting_rows_enter_as_others_end():
    one_at_a_time = Constants(decode_step=1.0, decode_row=0.5, slots=1)
    assert decode([2, 3, 1], one_at_a_time) == [3.0, 7.5, 9.0]
    two = Constants(decode_step=1.0, slots=2)
    assert decode([1, 4, 2], two) == [1.0, 4.0, 3.0]


def test_verifiers_are_a_queue():
    one = Constants(decode_step=1.0, verify=2.0)
    assert verify([1.0, 1.0, 1.0], one) == 7.0
    assert verify([1.0, 1.0, 1.0], Constants(decode_step=1.0, verify=2.0, verifiers=3)) == 3.0
    assert verify([1.0, 9.0], one) == 11.0
    assert verify([], one) == 0.0


def test_rows_are_dealt_by_tokens():
    assert sorted(deal([5, 4, 3, 3, 3], 2)) == [8, 10]
    assert sum(deal(list(range(100)), 7)) == sum(range(100))


def test_all_wait_for_the_slowest_rank_and_share_the_update():
    constants = Constants(decode_step=1.0, update=1.0, update_token=0.1, exchange=0.25, sync=0.5)
    step = simulate([[10, 2], [4, 4]], constants, 2)
    assert step.generate == (10.0, 4.0)
    assert step.idle == pytest.approx(0.3)
    assert step.update == pytest.approx(1 + 0.1 * 10 + 0.25)  # 10 on one rank, 4 + 4 + 2 on the other
    assert step.seconds == pytest.approx(10 + 2.25 + 0.5)
    alone = simulate([[10, 2], [4, 4]], constants, 1)
    assert alone.seconds == pytest.approx(10 + 1 + 0.1 * 20 + 0.5)


def test_one_step_ahead_hides_the_shorter_part():
    constants = Constants(decode_step=1.0, update_token=1.0, sync=0.5)
    assert simulate([[3, 3]], constants, 1, ahead=True).seconds == 6.5


def test_traces_are_trained_but_not_generated():
    step = simulate([[3]], Constants(decode_step=1.0, update_token=1.0), 1, traces=[7])
    assert (step.rollouts, step.update) == (3.0, 10.0)


def test_lengths_stay_within_the_limit():
    lengths = draw_lengths(50, 8, median=1000, spread=1.0, limit=2000, seed=0)
    assert max(map(max, lengths)) == 2000
    assert min(map(min, lengths)) >= 1


def write_run(folder, processes: int, constants: Constants, steps: int = 12) -> None:
    """A run folder whose times follow the rules exactly; the miniature has a token for each character."""
    (folder / "rollouts").mkdir(parents=True)
    (folder / "config.yaml").write_text("model: miniature\n")
    with (folder / "metrics.jsonl").open("w") as metrics:
        for step in range(1, steps + 1):
            lengths = draw_lengths(4, 3, median=20, spread=0.5, limit=60, seed=100 * processes + step)
            found = simulate(lengths, constants, processes)
            times = {"time/generate": found.generate[0], "time/gather": found.rollouts - found.generate[0]}
            record = {"step": step, "time/update": found.update} | times
            metrics.write(json.dumps(record) + "\n")
            groups = [
                {"rollouts": [{"text": "1" * (length - 1), "off_policy": False, "finished": True} for length in group]}
                for group in lengths
            ]
            file = folder / "rollouts" / f"step-{step:06d}.jsonl"
            file.write_text("".join(json.dumps(group) + "\n" for group in groups))


def test_constants_of_a_run_are_found_and_give_the_times_of_another(tmp_path):
    constants = Constants(decode_step=0.01, decode_row=0.001, update=0.2, update_token=0.003)
    for name, processes in (("one", 1), ("two", 2)):
        write_run(tmp_path / name, processes, constants)
    found = calibrate(tmp_path / "one")
    assert found.decode_step == pytest.approx(0.01)
    assert found.decode_row == pytest.approx(0.001)
    assert found.update_token == pytest.approx(0.003)
    for simulated, measured in compare(tmp_path / "one", tmp_path / "two", 2).values():
        assert simulated == pytest.approx(measured)
