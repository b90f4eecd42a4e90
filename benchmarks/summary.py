"""The table of goals: every row that the benchmarks have left in results/, with our figure and the verdict.

`python benchmarks/summary.py`, last in `make bench`. Prints the table and writes it into docs/performance.md, between
`<!-- table -->` and `<!-- end table -->`. `before` is the figure in results/before/, whose README names the commit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import RESULTS, ROOT, replace, shown
from rich.console import Console
from rich.table import Table

ORDER = (  # files, as the table lists them
    "step-luffy-miniature",
    "step-luffy-135M",
    "step-luffy-135M-bfloat16",
    "step-on-policy-miniature",
    "step-on-policy-135M",
    "step-on-policy-135M-bfloat16",
    "generation",
    "update-miniature",
    "update-135M",
    "memory",
    "step-parts",
    "doubling",
)
COLUMNS = ("what", "against", "before", "ours", "goal", "verdict", "note")
DOCUMENT = ROOT / "docs" / "performance.md"


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of goals in a folder of results, in the order of the table."""
    names = [*ORDER, *sorted({path.stem for path in folder.glob("*.json")} - set(ORDER))]
    for name in names:
        path = folder / f"{name}.json"
        rows = json.loads(path.read_text()).get("rows", []) if path.exists() else []
        yield from (row for row in rows if "verdict" in row and "what" in row)


def table_rows() -> list[dict[str, str]]:
    """Every row as text."""
    before = {(row["what"], row["against"]): row["ours"] for row in read_rows(RESULTS / "before")}
    rows = []
    for row in read_rows(RESULTS):
        percent = "%" in row["goal"]
        earlier = shown(before.get((row["what"], row["against"])), percent)
        rows.append({**row, "before": earlier, "ours": shown(row["ours"], percent)})
    return rows


def markdown(rows: list[dict[str, str]]) -> str:
    """The table for a document; a missed goal stands out."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        cells = [f"**{row[name]}**" if name == "verdict" and row[name] == "missed" else row[name] for name in COLUMNS]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print and write."""
    rows = table_rows()
    table = Table(*COLUMNS[:-1], title="against the goals")
    for row in rows:
        table.add_row(*(row[name] for name in COLUMNS[:-1]))
    Console(width=180).print(table)
    replace(DOCUMENT, "table", markdown(rows))


if __name__ == "__main__":
    main()
