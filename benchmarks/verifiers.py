r"""How good the verifier `math` is, and what it takes from hostile completions.

    python benchmarks/verifiers.py --gold math_six.parquet          about 15 minutes
    python benchmarks/verifiers.py --hostile 500                    without the gold answers; about a minute

Three measurements, printed as tables, written to results/verifiers.json and into docs/verifiers.md:

- gold: each reference answer of the six math sets, put into a box, against itself (has to be accepted), and against the
  reference answer of the next problem of its set (has to be rejected, unless the two are equal).
- pairs: the hand-made pairs of tests/reward/answer_pairs.yaml, by our `math` and by math-verify alone.
- hostile: completions of benchmarks/hostile.py, each with a deadline.
"""

from __future__ import annotations

import argparse
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import yaml
from hostile import hostile_completions
from measuring import report
from write_results import replace

from luffy.reward import Verdict, VerifierPool

ROOT = Path(__file__).parents[1]
PAIRS = ROOT / "tests" / "reward" / "answer_pairs.yaml"
DOCUMENT = ROOT / "docs" / "verifiers.md"
WORKERS = 2
DEADLINE = 5.0  # seconds, for the pairs and the gold answers
MEMORY_SAMPLES = 0.1  # seconds between two looks at the memory of the workers


def math_verify_alone(completion_text: str, answer: str) -> bool:
    """What math-verify says when it is given everything as it is."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    expected = parse(f"\\boxed{{{answer}}}", parsing_timeout=None)
    return bool(verify(expected, parse(completion_text, parsing_timeout=None), timeout_seconds=None))


def verdicts(kind: str, pairs: Sequence[tuple[str, str]], deadline: float = DEADLINE) -> list[Verdict]:
    """The verdicts of (completion text, answer) pairs in worker processes."""
    with VerifierPool(kind, workers=WORKERS, deadline=deadline) as pool:
        return pool.verify_all(pairs)


def gold_answers(path: Path) -> dict[str, list[str]]:
    """The reference answers of the different problems, by set. path: a parquet file in the original's schema."""
    import pyarrow.parquet

    by_problem: dict[str, tuple[str, str]] = {}
    for row in pyarrow.parquet.read_table(path).to_pylist():
        by_problem.setdefault(row["prompt"][-1]["content"], (row["data_source"], row["reward_model"]["ground_truth"]))
    sets: dict[str, list[str]] = {}
    for name, answer in by_problem.values():
        sets.setdefault(name, []).append(answer)
    return sets


def measure_gold(path: Path) -> list[dict[str, Any]]:
    """A row a set: how many answers verify against themselves and against another problem's."""
    rows = []
    for name, answers in sorted(gold_answers(path).items()):
        own = verdicts("math", [(f"so it is $\\boxed{{{answer}}}$.", answer) for answer in answers])
        others = [*answers[1:], answers[0]]
        crossed = [(other, answer) for other, answer in zip(others, answers, strict=True) if other != answer]
        foreign = verdicts("math", [(f"so it is $\\boxed{{{other}}}$.", answer) for other, answer in crossed])
        rows.append(
            {
                "set": name,
                "answers": len(answers),
                "verify against themselves": sum(verdict.correct for verdict in own),
                "do not": ", ".join(
                    f"`{one}`" for one, verdict in zip(answers, own, strict=True) if not verdict.correct
                ),
                "accepted for another's": ", ".join(
                    f"`{other}` for `{answer}`"
                    for (other, answer), verdict in zip(crossed, foreign, strict=True)
                    if verdict.correct
                ),
            }
        )
    return rows


def read_pairs(path: Path = PAIRS) -> Iterator[tuple[str, str, str, bool]]:
    """The hand-made pairs as (category, reference answer, completion text, equal)."""
    for category, pairs in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        for answer, completion_text, equal in pairs:
            yield category, answer, completion_text, equal


def measure_pairs() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A row a category, and a row a pair that `math` gets wrong."""
    pairs = list(read_pairs())
    found = verdicts("math", [(text, answer) for _, answer, text, _ in pairs])
    alone = verdicts("python:verifiers:math_verify_alone", [(text, answer) for _, answer, text, _ in pairs])
    rows: dict[str, dict[str, Any]] = {}
    wrong = []
    for (category, answer, text, equal), ours, theirs in zip(pairs, found, alone, strict=True):
        for name in (category, "all"):
            row = rows.setdefault(
                name, {"category": name, "pairs": 0, "right": 0, "rejected": 0, "accepted": 0, "alone": 0}
            )
            row["pairs"] += 1
            row["right"] += ours.correct == equal
            row["rejected"] += equal and not ours.correct
            row["accepted"] += ours.correct and not equal
            row["alone"] += theirs.correct == equal
        if ours.correct != equal:
            should = "equal" if equal else "unequal"
            wrong.append({"reference": answer, "completion": text, "is": should, "extracted": ours.extracted})
    return [*(row for name, row in rows.items() if name != "all"), rows["all"]], wrong


class MemoryWatch(threading.Thread):
    """The most memory that any process below this one takes, in bytes, sampled while the watch lasts."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self._over = threading.Event()

    def run(self) -> None:
        """Look until the watch is over."""
        while not self._over.wait(MEMORY_SAMPLES):
            for process in psutil.Process().children(recursive=True):
                try:
                    self.most = max(self.most, process.memory_info().rss)
                except psutil.Error:  # it has ended in between
                    continue

    def __enter__(self) -> MemoryWatch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


def measure_hostile(count: int, deadline: float, seed: int = 0) -> dict[str, Any]:
    """What the workers make of hostile completions."""
    completions = list(hostile_completions(count, seed))
    started = time.perf_counter()
    with MemoryWatch() as watch:
        found = verdicts("math", [(text, answer) for _, text, answer in completions], deadline)
    seconds = time.perf_counter() - started
    causes = Counter((verdict.failure or "").partition(":")[0] for verdict in found)
    families = Counter(name for (name, _, _), verdict in zip(completions, found, strict=True) if verdict.failure)
    return {
        "completions": count,
        "workers": WORKERS,
        "deadline, s": deadline,
        "verdicts": causes.pop("", 0),
        "accepted": sum(verdict.correct for verdict in found),
        "timeout": causes.pop("timeout", 0),
        "memory": causes.pop("memory", 0),
        "crash": causes.pop("crash", 0),
        "error": sum(causes.values()),
        "seconds": round(seconds, 1),
        "a second": round(count / seconds, 1),
        "largest worker, MiB": watch.most // 2**20,
        "families with failures": ", ".join(f"{name} {number}" for name, number in families.most_common(8)),
    }


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gold", type=Path, help="parquet file of the six math sets in the original's schema")
    parser.add_argument("--hostile", type=int, default=10_000, help="how many hostile completions; 0: none")
    parser.add_argument("--deadline", type=float, default=1.0, help="seconds for a hostile completion")
    arguments = parser.parse_args()
    rows: dict[str, list[dict[str, Any]]] = {}
    if arguments.gold:
        rows["gold"] = measure_gold(arguments.gold)
    rows["pairs"], rows["wrong pairs"] = measure_pairs()
    for row in rows["wrong pairs"]:
        row |= {key: f"`{row[key]}`" for key in ("reference", "completion", "extracted")}
    if arguments.hostile:
        rows["hostile"] = [measure_hostile(arguments.hostile, arguments.deadline)]
    for name, table in rows.items():
        if table:
            shown = (
                [{"value": key, name: str(value)} for key, value in table[0].items()] if name == "hostile" else table
            )
            replace(DOCUMENT, name, markdown(shown))
    replace(DOCUMENT, "versions", f"math-verify {version('math-verify')}, sympy {version('sympy')}.")
    report("verifiers", [{"measurement": name, "rows": table} for name, table in rows.items()])


if __name__ == "__main__":
    main()
