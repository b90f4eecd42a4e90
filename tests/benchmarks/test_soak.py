"""What `benchmarks/soak.py` says of memory and results, on numbers worked out by hand."""

import pytest
import soak


def samples(*processes):
    """Consecutive steps of processes: each (steps, megabytes of the first step, of the last), in between evenly."""
    found = []
    for number, (steps, first, last) in enumerate(processes):
        for place in range(steps):
            held = first + (last - first) * place / (steps - 1)
            found.append({"process": number, "step": len(found) + 1, "bytes": round(held * 1e6)})
    return found


def test_memory_over_a_run_that_grew_is_not_flat_and_says_so_whatever_the_processes():
    leak = samples((500, 100, 200))
    run = soak.drift_of_run(leak, 500)
    assert [round(held / 1e6) for held in run["fifths"]] == [110, 130, 150, 170, 190]
    assert (run["drift"], run["flat"]) == (pytest.approx(190.08 / 109.92 - 1, abs=1e-4), False)
    begun_anew = samples(*[(100, 100, 200)] * 5)  # each start leaks and dies: only the measure of a process sees it
    assert soak.drift_of_run(begun_anew, 500)["flat"] is True
    assert soak.drift_of_process(begun_anew)["flat"] is False
    steady = soak.both_drifts(samples((500, 100, 100.1)), 500)
    assert [one["flat"] for one in steady.values()] == [True, True]


def test_the_longest_process_counts_after_its_first_steps():
    warm_up = [{"process": 1, "step": step, "bytes": 10} for step in range(1, soak.WARM_UP + 1)]
    long = [{"process": 1, "step": soak.WARM_UP + step, "bytes": 1000 + step // 51 * 20} for step in range(1, 101)]
    other = [{"process": 2, "step": 130 + step, "bytes": 9000} for step in range(1, 50)]
    found = soak.drift_of_process([*warm_up, *long, *other])
    assert found == {"steps": 100, "fifths": [1000, 1000, 1010, 1020, 1020], "drift": pytest.approx(0.02), "flat": True}
    assert soak.drift_of_process(warm_up)["flat"] is None  # too short to say


def test_the_tables_say_what_is_missed():
    found = {
        "steps": 500,
        "every step once": False,
        "events": [{"signal": "SIGKILL", "status": -9}, {"signal": None, "status": 1}, {"signal": None, "status": 0}],
        "updates skipped": 2.0,
        "verifier failures": 1.0,
        "memory": {"disturbed": soak.both_drifts(samples((500, 100, 200)), 500)},
        "steps up": {"all": 3, "at the largest batch so far": 2},
        "evaluations": {
            "miniature/hard": soak.compare(
                {"avg@1": {"value": 0.5, "low": 0.4, "high": 0.6}},
                [
                    {"avg@1": {"value": 0.8, "low": 0.7, "high": 0.9}},
                    {"avg@1": {"value": 0.7, "low": 0.55, "high": 0.8}},
                ],
            )
        },
    }
    text = soak.tables(found)
    assert "**not** each of them in the metrics once" in text
    assert "3 starts, ended by SIGKILL (1), a full disk (1), its end (1)" in text
    assert "| disturbed | all steps | 500 | 110, 130, 150, 170, 190 | +72.9% | **no** |" in text
    assert "| hard | 50 | 80, 70 | 55.0 to 90.0 | **no** |" in text
