"""The miniature on vLLM against the transformers engine: LUFFY, the same problems, steps and seeds.

    .venv-vllm/bin/python benchmarks/engines.py --output runs/engines      # after `make test-vllm` has made .venv-vllm

One run says little about `longer`, which is not trained and wanders (docs/engines.md); means over seeds do. Both
engines run in this environment. Writes OUTPUT/engines.json; with three seeds or more also docs/results/engines.json
and the table of docs/engines.md. Resumable: finished runs are not repeated, an interrupted one goes on from its last
checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

from measuring import ROOT, replace
from variants import SEEDS, compare, describe, table

ENGINES = {
    "transformers": [],
    "vllm": ["rollout.engine=vllm", "rollout.vllm.eager=true", "rollout.vllm.cache_gib=1"],
}
LEAST_SEEDS = 3  # for the table of the docs


def rows(found: dict[str, Any]) -> str:
    """What docs/engines.md says."""
    titles = {"transformers": "`transformers`", "vllm": "`vllm`", "difference": "`vllm` - `transformers`"}
    return "\n".join(
        [
            *table(found, titles),
            "",
            f"Accuracy in % with 95 % intervals over problems and {found['seeds']} seeds; the whole recipe.",
        ]
    )


def main() -> None:
    """Run what is missing, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/engines"))
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    runs = compare(ENGINES, arguments.seeds, arguments.output, arguments.jobs)
    found = describe(runs, ("transformers", "transformers"), ("vllm", "vllm"))
    file = arguments.output / "engines.json"
    file.write_text(json.dumps(found, indent=2) + "\n")
    print(rows(found))
    if found["seeds"] >= LEAST_SEEDS:
        shutil.copy(file, ROOT / "docs" / "results" / "engines.json")
        replace(ROOT / "docs" / "engines.md", "engines", rows(found))


if __name__ == "__main__":
    main()
