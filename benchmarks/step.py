"""Where the time of a LUFFY step on the miniature goes.

`python benchmarks/step.py`. Goal: at most 10 % outside generating, verifying and updating. Steps of a run without
evaluations and checkpoints; the whole time from step to step counts, writing metrics included.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

from measuring import report

from luffy import load_config, train

STEPS, SKIPPED, GOAL = 40, 5, 0.10
PARTS = ("time/generate", "time/verify", "time/update")


def main() -> None:
    """Run and add up."""
    seen: list[tuple[float, dict[str, Any]]] = []

    def note(_step: int, _steps: int, metrics: dict[str, Any]) -> None:
        seen.append((time.perf_counter(), metrics))

    rows = []
    for model in ("miniature", "miniature-eager"):
        seen.clear()
        with tempfile.TemporaryDirectory() as folder:
            overrides = [f"output={folder}/run", f"steps={STEPS}", "evaluation.watch=[]", "evaluation.benchmarks=[]"]
            config = load_config(
                "recipes/miniature.yaml", [*overrides, f"model={model}", "optimizer.learning_rate=1e-3"]
            )
            train(config, on_step=note)
        whole = seen[-2][0] - seen[SKIPPED][0]  # the last step also saves the model
        parts = {part: sum(metrics[part] for _, metrics in seen[SKIPPED + 1 : -1]) for part in PARTS}
        outside = 1 - sum(parts.values()) / whole
        rows.append(
            {"model": model, "step, s": whole / (STEPS - SKIPPED - 2)}
            | {f"{part.removeprefix('time/')}, share": seconds / whole for part, seconds in parts.items()}
            | {"outside": outside, "goal": f"<= {GOAL}", "reached": "yes" if outside <= GOAL else "no"}
        )
    report("step", rows)


if __name__ == "__main__":
    main()
