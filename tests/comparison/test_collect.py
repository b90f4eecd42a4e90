"""Reading what runs leave on disk, whole, half-written or broken."""

import json

import numpy as np
import pytest
from synthetic import write_run, write_runs

from luffy.comparison.collect import BASE, Evaluation, align, group_runs, read_comparison, read_run, summarise
from luffy.errors import RunError
from luffy.evaluation.statistics import means_interval


def without_samples(folder):
    """Take the samples of the evaluations away, as where a run is kept for its numbers alone."""
    for path in folder.rglob("evaluations/*/*.jsonl"):
        path.unlink()


def edit_lines(path, values):
    """Put values into every line."""
    path.write_text("".join(json.dumps(json.loads(line) | values) + "\n" for line in path.read_text().splitlines()))


@pytest.fixture(scope="module")
def comparison_folder(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("runs") / "c", ("luffy", "on_policy"), seeds=2, problems=20, steps=20)


def test_a_run_is_read_as_it_was_written(comparison_folder):
    run = read_run(comparison_folder / "luffy" / "seed-1")
    assert (run.method, run.seed, run.status, run.steps, run.finished) == ("luffy", 1, "finished", 20, True)
    assert run.config["data"]["train"] == "miniature"
    assert run.environment["hardware"]["cores"] == 2
    assert len(run.series("reward/on_policy")) == 20
    assert run.total("trained") == 9000 * 20
    base, final = run.base("miniature/hard"), run.last("miniature/hard")
    assert base is not None
    assert final is not None
    assert (base.step, final.step, final.processed) == (0, 20, 16000 * 20)
    assert len(final.outcomes) == 20
    assert np.mean(list(final.outcomes.values())) == final.metrics["avg@1"]["value"]


def test_a_comparison_has_its_methods_seeds_and_base(comparison_folder):
    comparison = read_comparison(comparison_folder)
    assert {method: [run.seed for run in runs] for method, runs in comparison.methods.items()} == {
        "luffy": [0, 1],
        "on_policy": [0, 1],
    }
    assert comparison.incomplete == ()
    base, luffy = comparison.accuracies([BASE, "luffy"], "miniature/hard")
    assert (base.shape, luffy.shape) == ((1, 20), (2, 20))
    assert comparison.accuracies(["luffy", "sft"], "miniature/hard") is None
    assert comparison.accuracies(["luffy"], "no/such/set") is None


def test_outcomes_are_paired_by_problem_not_by_place():
    rows = align([[{"a": 1.0, "b": 0.0, "only here": 1.0}], [{"b": 1.0, "a": 0.5}]])
    assert [matrix.tolist() for matrix in rows] == [[[1.0, 0.0]], [[0.5, 1.0]]]
    assert align([[{"a": 1.0}], [{"b": 1.0}]]) is None
    assert align([[{"a": 1.0}], []]) is None


def test_missing_and_unfinished_runs_are_named_and_not_counted(tmp_path):
    write_runs(tmp_path, ("luffy", "sft"), seeds=2, problems=10, steps=10)
    write_run(tmp_path / "luffy" / "seed-2", "luffy", 2, problems=10, steps=10, until=5)
    comparison = read_comparison(tmp_path)
    assert len(comparison.finished("luffy")) == 2
    assert "sft, seed 2: there is no run." in comparison.incomplete
    assert "luffy, seed 2: stopped after 5 steps; not counted." in comparison.incomplete


def test_a_run_that_has_just_begun_can_be_read(tmp_path):
    folder = tmp_path / "luffy" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("config: {method: luffy}\n")
    run = read_comparison(tmp_path).runs[0]
    assert (run.status, run.steps, run.sets, run.total("seconds")) == ("unknown", 0, [], None)


def test_a_step_recorded_twice_counts_once(tmp_path):
    folder = write_run(tmp_path / "r", steps=4, problems=5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "phase": "rl", "reward/on_policy": 0.123}) + "\n")
    run = read_run(folder)
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4]
    assert run.series("reward/on_policy")[-1] == 0.123


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.yaml", "a: [", r"config\.yaml: not valid YAML"),
        ("config.yaml", "- 1", r"config\.yaml: expected a mapping"),
        ("summary.json", "{", r"summary\.json: not valid JSON"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    folder = write_run(tmp_path / "r", steps=2, problems=5)
    (folder / name).write_text(content)
    with pytest.raises(RunError, match=message):
        read_run(folder)


def test_folders_that_hold_no_run_are_refused(tmp_path):
    with pytest.raises(RunError, match="not a run folder"):
        read_run(tmp_path)
    with pytest.raises(RunError, match="no run found"):
        read_comparison(tmp_path)
    (tmp_path / "luffy" / "seed-x").mkdir(parents=True)
    with pytest.raises(RunError, match="expected a folder name such as seed-0"):
        read_comparison(tmp_path)


def test_single_runs_are_grouped_by_method_unless_that_would_mix_them_up(tmp_path):
    first = read_run(write_run(tmp_path / "a", "luffy", 0, steps=2, problems=5))
    second = read_run(write_run(tmp_path / "b", "luffy", 1, steps=2, problems=5))
    again = read_run(write_run(tmp_path / "c", "luffy", 0, steps=2, problems=5))
    assert {name: len(runs) for name, runs in group_runs([first, second]).methods.items()} == {"luffy": 2}
    assert list(group_runs([first, again]).methods) == ["a", "c"]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_without_samples_no_end_lies_where_no_value_can(tmp_path, seeds):
    folder = write_runs(tmp_path / "c", ("luffy",), seeds, problems=30, steps=4, accuracy={"longer": 0.03})
    for seed in range(seeds):  # far apart: with two seeds, a t interval reaches far below zero and above one
        odd = {"completion/truncated": 0.9 * (seed % 2), "completion/length": 10.0 + 9 * seed}
        edit_lines(folder / "luffy" / f"seed-{seed}" / "evaluations.jsonl", odd)
    without_samples(folder)
    comparison = read_comparison(folder)
    for name in comparison.sets:
        for metric, value in summarise(comparison.final("luffy", name)).items():
            if value["low"] is None:
                assert seeds == 1
                continue
            assert 0 <= value["low"] <= value["value"] <= value["high"], (name, metric)
            assert metric == "completion/length" or value["high"] <= 1, (name, metric)
            if metric == "avg@1":
                assert value["n"] == 30


def test_other_shares_of_problems_are_over_seeds_and_problems_too():
    seeds = [
        Evaluation(9, "set", 0.0, {"pass@4": {"value": value, "low": 0.1, "high": 0.9, "n": 50}}, {})
        for value in (0.4, 0.5)
    ]
    assert summarise(seeds) == {"pass@4": means_interval([0.4, 0.5], 50).to_json()}
    assert summarise(seeds[:1]) == {"pass@4": {"value": 0.4, "low": 0.1, "high": 0.9, "n": 50}}  # as the run gave it


def test_without_samples_on_disk_the_runs_own_interval_is_used(tmp_path):
    run = read_run(write_run(tmp_path / "r", steps=2, problems=20))
    evaluation = run.last("miniature/hard")
    without_samples(run.folder)
    bare = read_run(run.folder).last("miniature/hard")
    assert bare.outcomes == {}
    given = {key: value for key, value in summarise([bare])["avg@1"].items() if key != "n"}
    assert given == {key: value for key, value in evaluation.metrics["avg@1"].items() if key != "n"}
