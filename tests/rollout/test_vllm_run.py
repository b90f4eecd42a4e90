"""The miniature on vLLM learns what it learns on the transformers engine: `make test-vllm`."""

import json

import pytest

from luffy import load_config, train
from small_engines import needs_vllm

pytestmark = [pytest.mark.slow, needs_vllm]


def test_the_miniature_reaches_what_it_reaches_on_the_transformers_engine(tmp_path):
    vllm = {"rollout.engine": "vllm", "rollout.vllm.eager": True, "rollout.vllm.cache_gib": 1}
    summary = train(load_config("recipes/miniature.yaml", vllm | {"output": str(tmp_path)}))
    found = summary.evaluations["miniature/hard"]["avg@1"]
    assert found["low"] <= 0.998 <= found["high"]  # mean of five seeds on the transformers engine: docs/results.md
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert max(step["policy/engine_gap"] for step in steps if "policy/engine_gap" in step) < 1e-4
