"""What moves during a run: who carries the advantage, what is learned and forgotten, and what a reader is warned of."""

import json
import math

import pytest
from synthetic import write_run, write_runs

from luffy.algorithm import gradient_weight
from luffy.comparison.collect import group_runs, read_comparison, read_run
from luffy.report.dynamics import dynamics_curves, forgetting_table, learned_traces, trace_share
from luffy.report.embed import embedded_size
from luffy.report.groups import sample_groups, shown_group, thinned
from luffy.report.histories import histories
from luffy.report.palette import looks
from luffy.report.warnings import warnings
from luffy.report.weights import trace_roles, weight_table


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "c"
    return read_comparison(write_runs(folder, ("luffy", "on_policy", "sft"), seeds=2, problems=30, steps=20))


def member(advantage, off_policy=False):
    return {"advantage": advantage, "off_policy": off_policy, "text": "x"}


def test_the_traces_share_of_the_positive_advantage():
    failed = {"rollouts": [member(-0.25), member(-0.25), member(-0.25), member(0.75, True)]}
    half = {"rollouts": [member(0.25), member(-0.5), member(0.25, True)]}
    assert trace_share([failed]) == 1
    assert trace_share([half]) == 0.5
    assert trace_share([failed, half]) == pytest.approx(1.0 / 1.25)
    assert trace_share([{"rollouts": [member(0.5), member(-0.5)]}]) is None  # no trace in it
    assert trace_share([{"rollouts": [member(0.0), member(0.0, True)]}]) is None  # nothing positive


def test_the_share_is_shown_by_thirds_and_only_for_methods_with_traces(comparison):
    curves = [curve for curve in dynamics_curves(comparison) if curve.title.startswith("Traces' share")]
    assert [curve.title.split(": ")[1] for curve in curves] == ["short problems", "medium problems", "long problems"]
    assert {point["m"] for curve in curves for point in curve.points} == {"luffy"}
    points = curves[0].points
    assert points[0]["v"] > 0.9 > points[-1]["v"]  # the synthetic run learns
    assert points[0]["t"] == 16_000 * points[0]["s"]


def test_what_the_base_knew_and_is_still_known(tmp_path):
    run = write_run(tmp_path / "r", steps=20, problems=10, sets=("worked",), every=10, rollouts=False)
    for step, right in ((0, 8), (10, 6), (20, 2)):
        path = run / "evaluations" / f"step-{step:06d}" / "miniature-worked.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for place, line in enumerate(lines):
            line["samples"][0]["correct"] = place < right
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (curve,) = dynamics_curves(group_runs([read_run(run)]))
    assert curve.title == "Still known: worked"
    assert [(point["s"], point["v"]) for point in curve.points] == [(0, 1.0), (10, 0.75), (20, 0.25)]
    ((row,),) = ([row["cells"] for row in forgetting_table(group_runs([read_run(run)]), looks(["luffy"]))],)
    assert (row[0]["value"], row[0]["lost"], row[0]["won"], row[0]["state"]) == ("-60.0", "60 %", "0 %", "fails")


def test_watched_traces_of_all_methods_are_laid_side_by_side(comparison):
    first, second = learned_traces(comparison)
    assert first["problem"] != second["problem"]
    assert set(first["methods"]) == {"luffy", "on_policy"}  # the synthetic SFT run saved none
    rows = first["methods"]["luffy"]
    assert rows["steps"] == [1, 10, 20]
    assert rows["logprobs"][-1][0] == round(100 * math.log(0.95))
    assert all(len(row) == len(first["tokens"]) for row in rows["logprobs"])


def test_a_problem_is_followed_through_the_evaluations(comparison):
    (watched,) = histories(comparison)
    assert watched["set"] == "miniature/hard"
    problem = watched["problems"][0]
    assert [answer["s"] for answer in problem["methods"]["luffy"]] == [0, 10, 20]
    assert set(problem["methods"]) == {"luffy", "on_policy", "sft"}
    assert {answer["right"] for answer in problem["methods"]["luffy"]} <= {0.0, 1.0}


def test_a_run_that_was_stopped_early_is_followed_beside_the_other(tmp_path):
    short = write_run(tmp_path / "a", "luffy", steps=20, problems=5, until=10)
    long = write_run(tmp_path / "b", "on_policy", steps=20, problems=5)
    (watched,) = histories(group_runs([read_run(short), read_run(long)]))
    steps = {name: [one["s"] for one in answers] for name, answers in watched["problems"][0]["methods"].items()}
    assert steps == {"luffy": [0, 10], "on_policy": [0, 10, 20]}


def test_the_weights_on_the_page_are_those_of_the_algorithm(comparison):
    table = weight_table(comparison)
    for row in (0, 80, 126, 300):
        ratio = math.exp(-table["first"] - table["step"] * row)
        assert table["plain"][row] == pytest.approx(ratio, rel=1e-2)
        assert table["shaped"][row] == pytest.approx(gradient_weight("regularized", ratio, gamma=0.1), rel=1e-2)
    assert max(table["shaped"]) == pytest.approx(0.25, abs=1e-4)
    assert table["even"] == pytest.approx(0.2162, abs=1e-4)
    assert trace_roles(comparison) == {"luffy": "shaped", "on_policy": "none", "sft": "supervised"}


def test_the_weights_follow_the_configuration(tmp_path):
    run = write_run(tmp_path / "r", steps=2, problems=5, rollouts=False)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("  rollout:\n", "  objective:\n    gamma: 0.3\n  rollout:\n"))
    table = weight_table(group_runs([read_run(run)]))
    assert table["gamma"] == 0.3
    row = round((-table["first"] - math.log(0.3)) / table["step"])
    assert table["shaped"][row] == max(table["shaped"])  # the strongest pull is at rho = gamma


def test_steps_are_left_out_evenly_and_never_the_first_or_last():
    assert thinned(range(11), 3) == [0, 5, 10]
    assert thinned([1, 2], 3) == [1, 2]
    assert thinned([1, 2], 1) == [1]


def test_groups_that_do_not_fit_are_left_out_by_whole_steps(comparison):
    every = sample_groups(comparison, 10**9)
    assert {group["step"] for group in every if group["method"] == "luffy"} == {1, 10, 20}
    size = sum(embedded_size(group) for group in every if group["method"] == "luffy")
    fewer = sample_groups(comparison, int(0.8 * size) * 3)  # three methods share it
    assert {group["step"] for group in fewer if group["method"] == "luffy"} == {1, 20}
    least = [group["step"] for group in sample_groups(comparison, int(0.2 * size) * 3) if group["method"] == "luffy"]
    assert least[0] == 1
    assert least[-1] == 20
    assert least.count(20) < 8


def test_long_completions_are_cut_and_what_is_missing_is_counted():
    rollout = {"tokens": ["a"] * 1000, "logprobs": [-0.5] * 1000, "entropy": [float("nan")] * 1000}
    (shown,) = shown_group({"rollouts": [rollout]}, "luffy", 1)["rollouts"]
    assert len(shown["tokens"]) == len(shown["logprobs"]) == len(shown["entropy"]) == 800
    assert shown["more"] == 200
    assert shown["logprobs"][0] == -50
    assert shown["entropy"][0] is None  # JSON knows no NaN


def test_warnings_are_sentences_with_numbers(tmp_path):
    run = write_run(tmp_path / "r", steps=10, problems=5, rollouts=False)
    assert warnings(group_runs([read_run(run)])) == []
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"verifier/failures": 1, "completion/truncated": 0.04 * line["step"], "policy/entropy": 0.001}
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    failed, truncated, entropy = warnings(group_runs([read_run(run)]))
    assert failed == "luffy: the verifier failed 10 times; those rollouts have reward 0."
    assert truncated.startswith("luffy: 38% of its own rollouts are cut off")
    assert "0.001 nats" in entropy
