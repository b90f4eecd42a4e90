"""Whether bfloat16 products change what is learned, on the miniature.

`python benchmarks/precision.py`: `policy.autocast` none and bfloat16, rollouts from a bfloat16 copy of the weights with
the latter, as `auto` chooses for large models where the processor has units for it; nothing else changed. Learning as
in `learning.py`; `policy/engine_gap` is how far the log-probs of engine and trainer are apart, in nats. Any processor
will do: without units the products are emulated, slowly, with the same numbers.

What was laid down before the runs: "not changed" means that the 95 % interval of the difference at the end of the
recipe, after 200 steps, lies within 2.5 points of none.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from learning import learning_rows
from measuring import report

ARMS: dict[str, dict[str, str]] = {
    "float32": {"policy.autocast": "none", "rollout.dtype": "float32"},
    "bfloat16": {"policy.autocast": "bfloat16", "rollout.dtype": "bfloat16"},
}
SHOWN = (60, 100, 140, 200)


def main() -> None:
    """Run what is missing and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/precision"))
    arguments = parser.parse_args()
    rows = learning_rows(ARMS, arguments.seeds, arguments.output, SHOWN)
    report("precision", [row | {"engine gap": _gap(arguments.output / row[""])} for row in rows])


def _gap(folder: Path) -> float:
    """The median of `policy/engine_gap` over all seeds and the steps that had something to learn from."""
    lines = [json.loads(line) for path in folder.glob("*/metrics.jsonl") for line in path.read_text().splitlines()]
    return float(statistics.median(line["policy/engine_gap"] for line in lines if "policy/engine_gap" in line))


if __name__ == "__main__":
    main()
