"""The problems of `benchmarks/real_model.py` are apart, right, and always the same; its recipe has what was found."""

import json
from pathlib import Path

import pytest
from real_model_data import write_sets

from luffy import load_config
from luffy.config import flatten
from luffy.data import load_problems
from luffy.reward.verifiers import verify_number

ROOT = Path(__file__).parents[1]
SUMS = ("train", "validation", "sums", "longer", "worded")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    write_sets(folder)
    return {path.stem: load_problems(str(path)).problems for path in folder.glob("*.jsonl")}


def numbers(problem):
    return tuple(
        int(word) for word in problem.prompt.replace(",", " ").replace("Answer:", "").split() if word.isdigit()
    )


def test_no_sum_is_in_two_sets(sets):
    every = [numbers(problem) for name in SUMS for problem in sets[name]]
    assert len(set(every)) == len(every) == 128 + 64 + 300


def test_every_answer_is_the_sum_and_every_trace_reaches_it(sets):
    for name in SUMS:
        for problem in sets[name]:
            assert sum(numbers(problem)) == int(problem.answer)
            assert all(verify_number(trace.text, problem.answer).correct for trace in problem.traces)
    assert [len(problem.traces) for problem in sets["train"]] == [1] * 128


def test_the_sets_are_the_same_every_time(sets, tmp_path):
    write_sets(tmp_path)
    assert {path.stem: load_problems(str(path)).problems for path in tmp_path.glob("*.jsonl")} == sets


def test_the_recipe_has_the_rates_that_the_search_chose():
    tuning = json.loads((ROOT / "docs/results/smollm2/tuning.json").read_text())
    for label, entry in tuning.items():
        method, *settings = label.split(",")
        found = flatten(load_config(ROOT / "recipes/smollm2-sums.yaml", {"method": method}))
        same = all(found[key] == float(value) for key, value in (setting.split("=") for setting in settings))
        assert same == entry["chosen"], label
