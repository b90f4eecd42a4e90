"""The miniature on vLLM learns what it learns on the transformers engine: `make test-vllm`."""

import json
from pathlib import Path

import pytest
from measuring import one_more_run

from luffy import load_config, train
from small_engines import needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]
VLLM = {"rollout.engine": "vllm", "rollout.vllm.eager": True, "rollout.vllm.cache_gib": 1}
SEEDS = 5  # of docs/results/miniature.json


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_miniature_ends_within_the_interval_of_the_transformers_engine_on_every_set(tmp_path):
    expected = json.loads(Path("docs/results/miniature.json").read_text())["methods"]["luffy"]["evaluations"]
    summary = train(load_config("recipes/miniature.yaml", VLLM | {"output": str(tmp_path)}))
    assert len(summary.evaluations) == 6
    outside = {}
    for name, found in summary.evaluations.items():
        mean = expected[name]["avg@1"]
        low, high = one_more_run(mean["value"], mean["low"], mean["high"], SEEDS)
        accuracy = found["avg@1"]
        if accuracy["high"] < low or accuracy["low"] > high:
            outside[name] = (accuracy["value"], low, high)
    assert not outside
    gaps = [step["policy/engine_gap"] for step in metrics(tmp_path) if "policy/engine_gap" in step]
    assert max(gaps) < 1e-4


def test_one_step_ahead_is_one_step_stale_and_its_gap_is_that_step(tmp_path):
    ahead = {"rollout.ahead": 1, "objective.importance_cap": 2.0, "steps": 3, "evaluation.benchmarks": []}
    given = VLLM | ahead | {"evaluation.watch": [], "output": str(tmp_path)}
    train(load_config("recipes/miniature.yaml", given))
    first, *others = metrics(tmp_path)
    assert [first["policy/staleness"], *(step["policy/staleness"] for step in others)] == [0, 1, 1]
    assert first["policy/engine_gap"] < 1e-4 < min(step["policy/engine_gap"] for step in others)
