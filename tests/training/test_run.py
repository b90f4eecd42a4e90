"""A whole run on the miniature: what it leaves behind, and that stopping anywhere changes nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from luffy import DataError, ModelError, Problem, RunError, Trace, load_config, train
from luffy.policy import load_model
from luffy.rollout import TransformersEngine
from luffy.training.learner import Learner
from small_runs import SMALL, assert_same_run, lines, numbers, small


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of each method that is asked for, made once."""
    runs = {}

    def run(method):
        if method not in runs:
            path = tmp_path_factory.mktemp(method)
            train(small(path, method=method))
            runs[method] = path
        return runs[method]

    return run


def test_zero_without_its_package_is_refused_before_the_model_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("luffy.training.zero.find_spec", lambda name: None)
    config = small(tmp_path / "run", **{"parallel.sharding": "zero2", "model": str(tmp_path / "none")})
    with pytest.raises(ModelError, match=r"zero2 needs the package deepspeed.*pip install 'luffy-rl\[deepspeed\]'"):
        train(config)


def test_what_a_run_leaves_behind(finished):
    path = finished("luffy")
    assert {file.name for file in path.iterdir()} == {
        ".lock", "config.yaml", "metrics.jsonl", "evaluations.jsonl", "evaluations", "rollouts", "traces",
        "checkpoints", "model", "summary.json",
    }  # fmt: skip
    record = yaml.safe_load((path / "config.yaml").read_text())
    assert record["config"]["method"] == "luffy"
    assert {"torch", "transformers", "python"} <= set(record["versions"])
    assert len(record["data_digest"]) == 64
    summary = json.loads((path / "summary.json").read_text())
    assert set(summary) >= {"method", "seed", "status", "steps", "seconds", "tokens", "evaluations"}
    assert (summary["status"], summary["steps"]) == ("finished", 4)
    assert set(summary["tokens"]) == {"trained", "generated"}
    assert set(summary["evaluations"]["miniature/short"]["avg@1"]) == {"value", "low", "high", "n"}
    assert [path.name for path in sorted(path.glob("checkpoints/*"))] == ["step-000004"]
    for kind in ("rollouts", "traces"):
        saved = sorted(one.name for one in path.glob(f"{kind}/*"))
        assert saved == ["step-000001.jsonl", "step-000002.jsonl", "step-000004.jsonl"]


def test_the_metrics_of_the_design_are_there(finished):
    metrics = lines(finished("luffy") / "metrics.jsonl")
    assert [line["step"] for line in metrics] == [1, 2, 3, 4]
    assert not {"groups/drawn", "groups/redrawn", "groups/without_signal", "problems/solved"} & set(metrics[0])
    assert {
        "reward/on_policy", "reward/traces", "groups/all_failed", "groups/all_solved", "guidance/trace_advantage",
        "guidance/trace_probability", "policy/entropy", "policy/engine_gap", "completion/length",
        "completion/truncated", "update/loss", "update/gradient_norm", "update/skipped", "verifier/failures",
        "perf/padding_fraction", "perf/tokens_per_second", "time/generate", "time/verify", "time/update",
        "time/synchronise", "tokens/trained", "tokens/generated",
    } <= set(metrics[0])  # fmt: skip
    assert metrics[0]["policy/engine_gap"] < 1e-5


def test_metrics_that_do_not_exist_for_a_method_are_absent(finished):
    metrics = lines(finished("sft_rl") / "metrics.jsonl")
    assert [line["phase"] for line in metrics] == ["sft"] * 3 + ["rl"] * 4
    assert not {"reward/on_policy", "policy/entropy", "time/generate", "policy/engine_gap"} & set(metrics[0])
    assert not {"guidance/trace_advantage", "reward/traces"} & set(metrics[-1])


def test_the_tokens_are_counted(finished):
    path = finished("luffy")
    metrics = lines(path / "metrics.jsonl")
    assert metrics[-1]["tokens/generated"] == sum(round(line["completion/length"] * 6) for line in metrics)
    assert json.loads((path / "summary.json").read_text())["tokens"]["trained"] == metrics[-1]["tokens/trained"] > 0


def test_the_trained_model_is_ready_for_from_pretrained(finished):
    folder = finished("luffy") / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Q17+5:", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape[1] >= ids.shape[1] + 1
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert "trained with luffy" in card


def test_rollouts_hold_what_the_design_says(finished):
    groups = lines(finished("luffy") / "rollouts/step-000002.jsonl")
    assert len(groups) == 3
    assert set(groups[0]["problem"]) == {"id", "prompt", "answer", "source"}
    assert [one["off_policy"] for one in groups[0]["rollouts"]] == [False, False, True]
    assert {"text", "reward", "advantage", "finished", "logprobs"} <= set(groups[0]["rollouts"][0])
    for rollout in groups[0]["rollouts"]:
        assert len(rollout["tokens"]) == len(rollout["logprobs"]) == len(rollout["entropy"]) > 0


def test_traces_are_scored_by_the_policy_that_the_update_starts_from(finished):
    """At step 1 that is the base; the numbers come from its whole logits, one token after the other."""
    loaded = load_model("miniature", small(Path("unused")).policy)
    group = lines(finished("luffy") / "rollouts/step-000001.jsonl")[0]
    trace = group["rollouts"][-1]
    assert trace["off_policy"]
    start = loaded.tokenizer(group["problem"]["prompt"]).input_ids
    ids = loaded.tokenizer.convert_tokens_to_ids(trace["tokens"])
    with torch.no_grad():
        logits = loaded.model(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1].double()
    expected = torch.log_softmax(logits, dim=-1)
    assert trace["logprobs"] == pytest.approx(expected[range(len(ids)), ids].tolist(), abs=1e-3)
    assert trace["entropy"] == pytest.approx((-expected.exp() * expected).sum(-1).tolist(), abs=1e-3)
    watched = lines(finished("luffy") / "traces/step-000004.jsonl")
    assert len({line["problem"] for line in watched}) == len(watched) == 4
    assert watched != lines(finished("luffy") / "traces/step-000001.jsonl")


def test_every_method_scores_the_same_traces(finished):
    names = {
        method: [(line["problem"], line["tokens"]) for line in lines(finished(method) / "traces/step-000001.jsonl")]
        for method in ("luffy", "sft_rl")
    }
    assert names["luffy"] == names["sft_rl"]


def test_the_same_seed_gives_the_same_run_and_another_one_not(finished, tmp_path):
    train(small(tmp_path / "again", method="luffy"))
    assert_same_run(tmp_path / "again", finished("luffy"))
    train(small(tmp_path / "other", method="luffy", seed=1))
    assert numbers(tmp_path / "other") != numbers(finished("luffy"))


# -- stopping and going on


@pytest.mark.parametrize("method", ["luffy", "sft_rl"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_that_broke_off_goes_on_as_if_nothing_had_happened(method, stop_after, finished, tmp_path):
    class PowerCutError(BaseException):
        pass

    def cut(step, steps, metrics):
        if step == stop_after:
            raise PowerCutError

    config = small(tmp_path, method=method, checkpoint_every=2)
    with pytest.raises(PowerCutError):
        train(config, on_step=cut)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "running"
    seen = []
    train(config, on_step=lambda step, steps, metrics: seen.append((step, steps)))
    phase_end = method == "sft_rl" and stop_after == 3  # always leaves a checkpoint
    assert seen[0][0] == (4 if phase_end else (stop_after // 2) * 2 + 1)
    assert seen[-1] == (seen[-1][1], seen[-1][1])
    assert_same_run(tmp_path, finished(method))


def some_digits_fail(completion, answer):
    """A reward that solves some groups whole and tells apart the rollouts of others."""
    return completion[-1:] not in ("0", "3", "7")


DYNAMIC = {"method": "on_policy", "steps": 6, "rollout.redraw": 1, "data.drop_solved": 1, "data.miniature.problems": 12,
           "data.miniature.traced": 0}  # fmt: skip


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory):
    path = tmp_path_factory.mktemp("dynamic")
    train(small(path, **DYNAMIC), reward=some_digits_fail)
    return path


@pytest.mark.parametrize("stop_after", [3, 5])
def test_a_row_of_problems_goes_on_where_it_was(stop_after, dynamic, tmp_path):
    def cut(step, steps, metrics):
        if step == stop_after:
            raise KeyboardInterrupt

    metrics = lines(dynamic / "metrics.jsonl")
    assert any(line["groups/redrawn"] for line in metrics[:2])  # else nothing is shown
    assert any(line["problems/solved"] for line in metrics[:2])
    config = small(tmp_path, checkpoint_every=2, **DYNAMIC)
    with pytest.raises(KeyboardInterrupt):
        train(config, reward=some_digits_fail, on_step=cut)
    train(config, reward=some_digits_fail)
    assert_same_run(tmp_path, dynamic)


def test_all_that_was_drawn_counts_but_only_what_was_learned_from_is_shown(dynamic):
    metrics = lines(dynamic / "metrics.jsonl")
    own = 3
    for line, before in zip(metrics, [{"tokens/generated": 0}, *metrics], strict=False):
        generated = line["tokens/generated"] - before["tokens/generated"]
        assert generated == round(line["completion/length"] * line["groups/drawn"] * own)
        assert line["groups/drawn"] == 3 + line["groups/redrawn"]
    assert len(lines(dynamic / "rollouts/step-000002.jsonl")) == 3


def test_a_checkpoint_without_a_place_in_the_row_goes_on_too(finished, tmp_path):
    """Written by an earlier version: every step took the same number of problems."""
    train(small(tmp_path, method="luffy", steps=2))
    state = tmp_path / "checkpoints/step-000002/state.json"
    (state.parent / "SHA256SUMS").unlink()
    kept = {name: value for name, value in json.loads(state.read_text()).items() if name not in NEW_IN_STATE}
    assert "problems_drawn" not in kept
    state.write_text(json.dumps(kept))
    train(small(tmp_path, method="luffy", steps=4))
    ours, theirs = (load_file(path / "model/model.safetensors") for path in (tmp_path, finished("luffy")))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# -- one step ahead

NO_BENCHMARKS = {"evaluation.benchmarks": [], "evaluation.watch": []}
AHEAD = {"rollout.ahead": 1, "objective.importance_cap": 2.0, "rollouts_every": 1}


def test_weights_that_generate_may_be_of_another_type(tmp_path):
    halves = {"rollout.dtype": "bfloat16", "policy.autocast": "bfloat16"}
    train(small(tmp_path / "whole", **halves))
    rounded = [line["policy/engine_gap"] for line in numbers(tmp_path / "whole")]
    assert all(1e-4 < gap < 0.1 for gap in rounded)
    assert all(
        tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "whole/model/model.safetensors").values()
    )
    train(small(tmp_path / "parts", steps=2, **halves))
    train(small(tmp_path / "parts", **halves))
    assert_same_run(tmp_path / "parts", tmp_path / "whole")


@pytest.fixture(scope="module")
def ahead(tmp_path_factory):
    """An uninterrupted run, one step ahead, of each method that is asked for, made once."""
    runs = {}

    def run(method):
        if method not in runs:
            path = tmp_path_factory.mktemp(f"ahead-{method}")
            train(small(path, method=method, **AHEAD))
            runs[method] = path
        return runs[method]

    return run


@pytest.mark.parametrize(("method", "stop_after"), [("luffy", 3), ("sft_rl", 3), ("sft_rl", 5)])
def test_a_run_one_step_ahead_goes_on_as_if_nothing_had_happened(method, stop_after, ahead, tmp_path):
    def cut(step, steps, metrics):
        if step == stop_after:
            raise KeyboardInterrupt

    config = small(tmp_path, method=method, checkpoint_every=2, **AHEAD)
    with pytest.raises(KeyboardInterrupt):
        train(config, on_step=cut)
    newest = max(tmp_path.glob("checkpoints/step-*"))
    assert (newest / "ahead.json").exists() == (newest.name != "step-000003")  # the end of the supervised phase
    train(config)
    assert_same_run(tmp_path, ahead(method))


def test_ahead_and_a_row_that_changes_go_on_together(tmp_path):
    def cut(step, steps, metrics):
        if step == 3:
            raise KeyboardInterrupt

    settings = DYNAMIC | AHEAD | {"checkpoint_every": 2}
    train(small(tmp_path / "whole", **settings), reward=some_digits_fail)
    with pytest.raises(KeyboardInterrupt):
        train(small(tmp_path / "cut", **settings), reward=some_digits_fail, on_step=cut)
    groups = json.loads((tmp_path / "cut/checkpoints/step-000002/ahead.json").read_text())
    assert groups["replaced"]  # else nothing is shown
    train(small(tmp_path / "cut", **settings), reward=some_digits_fail)
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_batch_collected_ahead_is_of_the_weights_before_the_update(tmp_path, monkeypatch):
    """However late it is sampled. So the second batch is that of a run that never learns; the third is not."""
    updated = threading.Event()
    update, generate = Learner.update, TransformersEngine.generate

    def noticed(*given):
        metrics = update(*given)
        updated.set()
        return metrics

    def late(*given):
        if threading.current_thread() is not threading.main_thread():
            assert updated.wait(20)
            updated.clear()
        return generate(*given)

    monkeypatch.setattr(Learner, "update", noticed)
    monkeypatch.setattr(TransformersEngine, "generate", late)
    for name, rate in (("learns", 1e-3), ("still", 1e-30)):
        updated.clear()
        train(small(tmp_path / name, **AHEAD | NO_BENCHMARKS | {"optimizer.learning_rate": rate}))
    learned, still = ([_sampled(tmp_path / name, step) for step in (1, 2, 3)] for name in ("learns", "still"))
    assert learned[:2] == still[:2]
    assert learned[2] != still[2]


def _sampled(run, step):
    """The own rollouts as the engine gave them; entropies and traces are scored by the policy of the step itself."""
    groups = lines(run / f"rollouts/step-{step:06d}.jsonl")
    own = [rollout for group in groups for rollout in group["rollouts"] if not rollout["off_policy"]]
    return [(rollout["text"], rollout["logprobs"]) for rollout in own]


def test_staleness_and_its_gap_are_measured(ahead):
    metrics = lines(ahead("luffy") / "metrics.jsonl")
    assert [line["policy/staleness"] for line in metrics] == [0, 1, 1, 1]
    assert metrics[0]["policy/engine_gap"] < 1e-5 < min(line["policy/engine_gap"] for line in metrics[1:])
    own = 3 * 2
    assert metrics[-1]["tokens/generated"] == sum(round(line["completion/length"] * own) for line in metrics)
    assert not list(ahead("luffy").glob("checkpoints/step-000004/ahead.json"))  # nothing is generated for no step


def test_evaluations_are_of_the_newest_weights(ahead, finished):
    """Also in a supervised phase, which the engine takes no part in."""
    ours, theirs = (lines(path / "evaluations.jsonl") for path in (ahead("sft_rl"), finished("sft_rl")))
    assert [one["step"] for one in ours] == [one["step"] for one in theirs]
    assert ours[:2] == theirs[:2]
    generations = [(path / "evaluations/step-000002/miniature-short.jsonl").read_text()
                   for path in (ahead("sft_rl"), finished("sft_rl"))]  # fmt: skip
    assert generations[0] == generations[1]
    base = (finished("sft_rl") / "evaluations/step-000000/miniature-short.jsonl").read_text()
    assert generations[0] != base


def test_a_shared_device_is_said_and_an_absent_one_refused(tmp_path, caplog):
    train(small(tmp_path / "shared", steps=1, **AHEAD))
    assert "generating and updating share cpu" in caplog.text
    with pytest.raises(ModelError, match=r"rollout\.device=cuda:7 cannot be used"):
        train(small(tmp_path / "absent", steps=1, **AHEAD, **{"rollout.device": "cuda:7"}))


def test_a_verifier_that_fails_ahead_stops_the_run(tmp_path):
    calls = []

    def breaks(completion, answer):
        calls.append(completion)
        if len(calls) > 20:  # eight traces, then six rollouts a step
            raise KeyError("no such thing")
        return True

    with pytest.raises(RunError, match=r"the verifier failed on \d+ of \d+ completions of a step.*KeyError"):
        train(
            small(tmp_path, method="luffy", **AHEAD | {"evaluation.benchmarks": [], "evaluation.watch": []}),
            reward=breaks,
        )
    assert len(lines(tmp_path / "metrics.jsonl")) < 4


NEW_IN_STATE = ("problems_drawn", "solved", "skipped_in_a_row")
KILLED = """
import json, os, sys, torch
torch.set_num_threads(1)
from luffy import load_config, train
config = load_config(overrides=json.loads(sys.argv[1]))
train(config, on_step=lambda step, steps, metrics: os._exit(9) if step == 5 else None)
"""


def test_a_killed_process_leaves_a_run_that_goes_on(finished, tmp_path):
    settings = SMALL | {"output": str(tmp_path), "method": "sft_rl", "checkpoint_every": 2}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, json.dumps(settings)], check=False, env=environment)
    assert killed.returncode == 9
    with (tmp_path / "metrics.jsonl").open("a") as file:  # in the middle of a line
        file.write('{"step": 6, "phase": "r')
    part = tmp_path / "checkpoints/step-000006.part"
    part.mkdir()
    (part / "state.json").write_text("{")
    train(load_config(overrides=settings))
    assert_same_run(tmp_path, finished("sft_rl"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_leaves_a_checkpoint_and_goes_on_later(number, finished, tmp_path, caplog):
    def ask(step, steps, metrics):
        if step == 2:
            os.kill(os.getpid(), number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    config = small(tmp_path, method="luffy", **{"evaluation.every": 2})
    # asked during step 2, noticed at its end or at the end of the next
    summary = train(config, on_step=ask)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert summary.status == "stopped"
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "stopped"
    assert (tmp_path / f"checkpoints/step-{summary.steps:06d}/state.json").exists()
    assert f"stopped after step {summary.steps}" in caplog.text
    assert not (tmp_path / "model").exists()
    assert train(config).status == "finished"
    assert_same_run(tmp_path, finished("luffy"))


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def insist(step, steps, metrics):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(small(tmp_path), on_step=insist)


def test_a_finished_run_says_so_and_returns_at_once(finished, caplog):
    path = finished("luffy")
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.name not in (".lock", "config.yaml")}
    caplog.set_level("INFO", logger="luffy")
    summary = train(small(path, method="luffy"), on_step=lambda *_: pytest.fail("a step was taken"))
    assert summary.status == "finished"
    assert "already finished (4 steps)" in caplog.text
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_more_steps_go_on_from_where_it_ended(finished, tmp_path):
    train(small(tmp_path, method="luffy", steps=2))
    seen = []
    train(small(tmp_path, method="luffy", steps=4), on_step=lambda step, steps, metrics: seen.append(step))
    assert seen == [3, 4]
    ours, theirs = (load_file(path / "model/model.safetensors") for path in (tmp_path, finished("luffy")))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_changed_data_is_refused(tmp_path):
    problems = [Problem(str(place), f"Q1{place}+5:", "22", traces=(Trace("#22"),)) for place in range(3)]
    config = small(tmp_path, steps=1)
    train(config, problems=problems)
    with pytest.raises(RunError, match="has changed since"):
        train(config, problems=problems[:2])


# -- what may go wrong


def test_a_full_disk_names_the_checkpoint_to_go_on_from(finished, tmp_path, monkeypatch):
    from luffy.training import run_folder

    append = run_folder.append_line

    def full(path, record):
        if record["step"] == 3:
            path = path.with_name("full.jsonl")
            path.symlink_to("/dev/full")
        append(path, record)

    config = small(tmp_path, method="luffy", checkpoint_every=2)
    monkeypatch.setattr(run_folder, "append_line", full)
    with pytest.raises(RunError, match=r"No space left on device.*The last good checkpoint is .*step-000002\.$"):
        train(config)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
    monkeypatch.undo()
    train(config)
    assert_same_run(tmp_path, finished("luffy"))


def test_weights_that_are_not_finite_stop_the_run_with_the_last_good_checkpoint(tmp_path, monkeypatch, caplog):
    loss = Learner._loss
    calls = []

    def poisoned(self, rows):
        calls.append(1)
        value, stats = loss(self, rows)
        return (value * float("nan") if self.phase_begin == 0 and len(calls) > 1 else value), stats

    monkeypatch.setattr(Learner, "_loss", poisoned)
    config = small(tmp_path, method="sft", steps=6, checkpoint_every=1)
    with pytest.raises(RunError, match=r"3 updates in a row.*The last good checkpoint is .*step-000003"):
        train(config)
    assert "step 2: loss or gradient is not finite, update skipped (1 of 3 allowed in a row)" in caplog.text
    assert [line["update/skipped"] for line in lines(tmp_path / "metrics.jsonl")] == [0, 1, 1]
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_verifier_that_fails_too_often_stops_the_run(tmp_path):
    def broken(completion, answer):
        raise KeyError("no such thing")

    problems = [Problem(str(place), f"Q1{place}+5:", "22") for place in range(3)]
    config = small(tmp_path, method="on_policy")
    with pytest.raises(RunError, match=r"the verifier failed on \d+ of \d+ completions of a step.*KeyError"):
        train(config, problems=problems, reward=broken)


def test_a_method_that_learns_from_traces_needs_one(tmp_path):
    problems = [Problem("a", "Q17+5:", "22")]
    with pytest.raises(DataError, match=r"method 'luffy' learns from traces.*method=on_policy"):
        train(small(tmp_path), problems=problems)
    too_long = small(tmp_path, **{"rollout.max_tokens": 8, "data.on_long_trace": "drop"})
    with pytest.raises(DataError, match=r"long trace: \d+\. rollout\.max_tokens=\d+ would keep half of the long ones"):
        train(too_long)


def test_a_wrong_benchmark_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"unknown benchmark 'miniature/hrad'\. Did you mean 'miniature/hard'\?"):
        train(small(tmp_path / "run", **{"evaluation.benchmarks": ["miniature/hrad"], "evaluation.watch": []}))
    assert not (tmp_path / "run").exists()


def test_benchmarks_that_results_could_not_tell_apart_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text('{"prompt": "Q17+5:", "answer": "22"}\n')
    both = [str(tmp_path / name / "test.jsonl") for name in ("a", "b")]
    with pytest.raises(ValueError, match="are both called 'test'"):
        train(small(tmp_path / "run", **{"evaluation.benchmarks": both, "evaluation.watch": []}))


def test_preparation_is_a_warning_only_where_something_was_left_out(tmp_path, caplog):
    caplog.set_level("INFO", logger="luffy")
    train(small(tmp_path / "good", steps=1))
    report = [record for record in caplog.records if "8 problems with 8 traces" in record.message]
    assert [record.levelname for record in report] == ["INFO"]
    train(small(tmp_path / "bad", steps=1, **{"data.miniature.wrong": 0.5}))
    assert any(record.levelname == "WARNING" and "does not verify" in record.message for record in caplog.records)


@pytest.mark.parametrize(("key", "value"), [("sft.steps", 2), ("sft.batch_size", 2)])
def test_the_settings_of_the_supervised_phase_have_an_effect(key, value, finished, tmp_path):
    train(small(tmp_path, method="sft_rl", **{key: value}))
    assert numbers(tmp_path) != numbers(finished("sft_rl"))
