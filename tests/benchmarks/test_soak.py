"""What `benchmarks/soak.py` says of memory and results, on numbers worked out by hand."""

from __future__ import annotations

import pytest
import soak


def samples(*processes: tuple[int, float, float]) -> list[dict[str, float]]:
    """Of each process its steps, and its bytes, which go from one value to another."""
    found: list[dict[str, float]] = []
    for number, (steps, first, last) in enumerate(processes):
        for place in range(steps):
            held = first + (last - first) * place / steps
            found.append({"process": number, "step": len(found) + 1, "bytes": held})
    return found


def test_memory_that_grows_within_a_process_is_not_flat():
    leak = soak.drift(samples((500, 100, 110)))
    assert leak["fifths"][0] == pytest.approx(101, abs=0.1)
    assert leak["drift"] == pytest.approx(0.08, abs=0.005)
    assert not leak["flat"]
    assert soak.drift(samples((500, 100, 100.1)))["flat"]


def test_a_run_of_several_processes_is_looked_at_as_a_whole_but_for_the_first():
    """Which has evaluated the base."""
    assert not soak.drift(samples((100, 150, 150), (250, 100, 100), (250, 110, 110)))["flat"]
    found = soak.drift(samples((300, 150, 150), (250, 100, 100), (250, 101, 101)))
    assert (found["first start"], found["fifths"]) == (150, [100, 100, 100.5, 101, 101])
    assert found["flat"]


def test_where_a_further_run_is_expected():
    """Against a table: t of 3 degrees of freedom is 3.182 at 97.5 %; one set, so nothing is corrected for."""
    runs = [{"hard": value} for value in (0.4, 0.5, 0.5, 0.6)]
    deviation = (0.02 / 3) ** 0.5
    half = 3.182 * deviation * (1 + 1 / 4) ** 0.5
    expected = soak.expected_accuracy(runs)["hard"]
    assert expected["low"] == pytest.approx(0.5 - half, abs=1e-4)
    assert expected["high"] == pytest.approx(0.5 + half, abs=1e-4)


def test_several_sets_widen_the_interval_and_a_share_stays_one():
    runs = [{"hard": value, "other": value} for value in (0.8, 0.9, 0.9, 1.0)]
    both, alone = soak.expected_accuracy(runs), soak.expected_accuracy([{"hard": run["hard"]} for run in runs])
    assert both["hard"]["low"] < alone["hard"]["low"]
    assert alone["hard"]["high"] == 1.0


def found(**changed: object) -> dict[str, object]:
    run = {
        "every step once": True, "processes": 1, "updates skipped": 2.0, "verifier failures": 1.0,
        "memory": soak.drift(samples((500, 100, 100))),
    }  # fmt: skip
    accuracy = {"undisturbed": [0.9, 0.8], "low": 0.7, "high": 1.0, "disturbed": 0.8, "unkilled": 0.7}
    return {
        "steps": 500,
        "events": [{"signal": "SIGKILL", "status": -9}, {"signal": None, "status": 1}, {"signal": None, "status": 0}],
        "runs": dict.fromkeys(("disturbed", "unkilled"), run | changed),
        "evaluations": {"miniature/hard": accuracy},
    }


def test_nothing_fails_where_everything_holds():
    assert soak.failures(found()) == []
    text = soak.tables(found())
    assert "SIGKILL (1), a full disk (1), its end (1)" in text
    assert "| hard | 80.0, 90.0 | 70.0 to 100.0 | 80.0 | yes | 70.0 | yes |" in text


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"every step once": False}, "a step is lost"),
        ({"memory": soak.drift(samples((500, 100, 200)))}, "memory is not flat"),
    ],
)
def test_what_does_not_hold_is_said_of_each_run(changed, said):
    failing = soak.failures(found(**changed))
    assert len(failing) == 2
    assert said in failing[0]
    assert "**no**" in soak.tables(found(**changed))


def test_a_result_outside_is_said():
    outside = found()
    outside["evaluations"]["miniature/hard"]["unkilled"] = 0.6
    assert soak.failures(outside) == ["unkilled: miniature/hard is outside"]
