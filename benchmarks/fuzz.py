"""Mutate data files, configurations and run folders: a clear message or a right result, never a traceback or a hang.

    python benchmarks/fuzz.py                      # 10,000 of them; counts to docs/reliability.md, results/fuzz.json
    python benchmarks/fuzz.py --count 500 --seed 7
    python benchmarks/fuzz.py --kinds report       # its 2,500 alone; the counts of the others stay

A case is known by its kind and number, and the same for the same seed: `--only data/137` repeats one, without catching
anything. What may come out: the thing itself, if it is sound (checked), or a LuffyError. Everything else is a finding:
another exception, more than 10 seconds of the processor, the end of the process, or a file that is left half written.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from kills import write_table

from luffy.config import Config, load_config
from luffy.data import load_problems
from luffy.errors import LuffyError
from luffy.report import write_report
from luffy.training import train
from luffy.training.checkpoint import DIGESTS, read_ahead, read_progress, take_up_checkpoint, write_digests
from luffy.training.run_folder import RunFolder, RunSummary

SECONDS = 10  # of the processor, after which a case counts as hanging
PATIENCE = 600  # seconds by the clock after which it does, too: other processes may be in the way
AT_ONCE = 200  # cases that share a process
RECIPES = Path(__file__).parents[1] / "recipes"
ROWS: list[dict[str, Any]] = [
    {"id": f"row-{place}", "prompt": f"What is {place} + 5?", "answer": str(place + 5), "source": "sums",
     "traces": [{"text": f"{place} + 5 = {place + 5}. #### {place + 5}", "model": "teacher"}]}
    for place in range(8)
]  # fmt: skip
ODD = [
    "null", "true", "-1", "0", "1e999", "NaN", "-Infinity", "9" * 40, '""', '" "', "[]", "{}", "[[]]", '"\\u0000"',
    '"\\ud800"', '"<script>alert(1)</script>"', '"../../../../etc/passwd"', '"{{ 7 * 7 }}"', "1_000", "0x10",
    "!!python/object:os.system", "&a [*a]", "*a", "<<: 1", "\ufeff", "\x00", "\u2028", "\r\n", "\t", "[" * 3000,
    "{" * 3000, "miniature", '{"a":' * 3000, "a" * 100_000,
    "'", '"', ",", ":", "#", "- ", "? ", "| ", "%", "---\n", "2026-01-01", "~",
]  # fmt: skip


# -- mutations


def mutate(content: bytes, draw: random.Random) -> bytes:
    """One to four changes of a file's bytes."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        content = draw.choice(MUTATIONS)(content, draw)
    return content


def _span(content: bytes, draw: random.Random) -> tuple[int, int]:
    begin = draw.randrange(len(content) + 1)
    return begin, min(len(content), begin + draw.choice([1, 1, 2, 8, 64, 512]))


def _flip(content: bytes, draw: random.Random) -> bytes:
    if not content:
        return content
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


def _delete(content: bytes, draw: random.Random) -> bytes:
    begin, end = _span(content, draw)
    return content[:begin] + content[end:]


def _repeat(content: bytes, draw: random.Random) -> bytes:
    begin, end = _span(content, draw)
    return content[:end] + content[begin:end] * draw.choice([1, 3, 50]) + content[end:]


def _truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _insert(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content) + 1)
    odd = draw.randbytes(draw.choice([1, 4, 64])) if draw.random() < 0.3 else _odd(draw)
    return content[:place] + odd + content[place:]


def _replace_value(content: bytes, draw: random.Random) -> bytes:
    """Another value in the place of a word, number or text."""
    found = list(re.finditer(rb'"(?:[^"\\]|\\.)*"|[\w.+-]+', content))
    if not found:
        return _insert(content, draw)
    chosen = draw.choice(found)
    return content[: chosen.start()] + _odd(draw) + content[chosen.end() :]


def _swap_lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    draw.shuffle(lines)
    return b"".join(lines)


def _odd(draw: random.Random) -> bytes:
    return draw.choice(ODD).encode("utf-8", "surrogatepass")


MUTATIONS: Sequence[Callable[[bytes, random.Random], bytes]] = [
    _flip, _delete, _repeat, _truncate, _insert, _replace_value, _replace_value, _swap_lines,
]  # fmt: skip


# -- data files


def _as_jsonl() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def _as_csv(separator: str) -> bytes:
    lines = [["id", "prompt", "answer", "source", "traces"]]
    lines += [[row["id"], row["prompt"], row["answer"], row["source"], row["traces"][0]["text"]] for row in ROWS]
    return "".join(separator.join(f'"{cell}"' for cell in line) + "\n" for line in lines).encode()


def _as_parquet() -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), buffer)
    return buffer.getvalue()


FILES: dict[str, Callable[[], bytes]] = {
    "jsonl": _as_jsonl,
    "json": lambda: json.dumps(ROWS, indent=1).encode(),
    "csv": lambda: _as_csv(","),
    "tsv": lambda: _as_csv("\t"),
    "parquet": _as_parquet,
}


def try_data(draw: random.Random, folder: Path) -> None:
    """A mutated data file: sound problems, or a LuffyError."""
    kind = draw.choice(list(FILES))
    path = folder / f"data.{kind}"
    path.write_bytes(mutate(FILES[kind](), draw))
    loaded = load_problems(path, on_bad_row=draw.choice(["refuse", "drop"]))
    problems = loaded.problems
    assert problems, "no problem, and no message"
    assert all(one.prompt and one.answer.strip() for one in problems), "a problem without prompt or answer"
    assert len({one.id for one in problems}) == len(problems), "an id twice"
    assert len(loaded.rows) == len(problems), "rows that do not fit the problems"


# -- configurations


def try_configuration(draw: random.Random, folder: Path) -> None:
    """A mutated recipe, perhaps an odd override: a configuration that survives a round trip, or a LuffyError."""
    recipe = draw.choice(sorted(RECIPES.rglob("*.yaml")))
    path = folder / "recipe.yaml"
    path.write_bytes(mutate(recipe.read_bytes(), draw))
    keys = [
        "steps",
        "optimizer.learning_rate",
        "evaluation.watch",
        "methods.luffy.steps",
        "data",
        "nonsense",
        "",
        "a.b.c",
    ]
    overrides = [f"{draw.choice(keys)}={draw.choice(ODD)}"] if draw.random() < 0.3 else []
    config = load_config(path, overrides)
    again = Config.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))))
    assert again == config, "another configuration when it is read again"


# -- run folders


def build_run(folder: Path) -> None:
    """A run folder as a run leaves it, its weights a few bytes."""
    opened = RunFolder(_run_config(folder), digest="d")
    for step in range(1, 5):
        opened.append_metrics(step, {"update/loss": 0.5, "time/step": 1.0})
        opened.append_evaluation({"step": step, "set": "a", "avg@1": {"value": 0.5, "low": 0.1, "high": 0.9, "n": 9}})
        opened.write_rollouts(step, [{"problem": {"id": "a", "prompt": "b", "answer": "c"}, "rollouts": []}])
        opened.write_generations(step, "a", [{"id": "a", "samples": [{"correct": True}]}])
    opened.write_summary(RunSummary("luffy", 0, "running", 4, 1.0, {"trained": 1, "generated": 1}))
    opened.close()
    for step in (2, 4):
        checkpoint = folder / "checkpoints" / f"step-{step:06d}"
        (checkpoint / "model").mkdir(parents=True)
        for name in ("model/model.safetensors", "model/config.json", "optimizer.safetensors"):
            (checkpoint / name).write_bytes(name.encode() * 9)
        (checkpoint / "ahead.json").write_text(json.dumps({"groups": [], "replaced": [], "metrics": {}}))
        (checkpoint / "state.json").write_text(json.dumps({"step": step, "tokens_trained": 9, "solved": {"a": 1}}))
        write_digests(checkpoint)


def _run_config(folder: Path) -> Config:
    return load_config(overrides={"output": str(folder)})


def try_run_folder(draw: random.Random, folder: Path) -> None:
    """A run folder with damaged files, opened to go on: all that follows is whole, or a LuffyError."""
    run = folder / "run"
    build_run(run)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    for path in draw.sample(files, draw.choice([1, 1, 2, 5])):
        _damage(path, draw)
    go_on(run)


def _damage(path: Path, draw: random.Random) -> None:
    way = draw.random()
    if way < 0.08:
        path.unlink()
    elif way < 0.16:
        path.unlink()
        path.mkdir()
    elif way < 0.24:
        path.with_name(path.name + ".part").write_bytes(path.read_bytes()[:9])
        path.with_name(draw.choice(["step-x", "step-", "step-9e9", "step--1"]) + path.suffix).write_bytes(
            path.read_bytes()
        )
    else:
        path.write_bytes(mutate(path.read_bytes(), draw))


def go_on(run: Path) -> None:
    """What `luffy train` reads and writes before the first step, the weights aside."""
    opened = RunFolder(_run_config(run), digest="d")
    try:
        opened.summary()
        checkpoint = take_up_checkpoint(run)
        step = -1
        if checkpoint:
            step = read_progress(checkpoint).step
            assert not (checkpoint / DIGESTS).exists() or step == int(checkpoint.name[-6:]), (
                "a step of another checkpoint"
            )
            read_ahead(checkpoint)
        opened.cut_after(step)
        kept = [line["step"] for line in opened.evaluations()]
        assert all(one <= step for one in kept), "an evaluation of a later step"
        opened.append_evaluation({"step": step, "set": "b", "avg@1": {"value": 0.5}})
        opened.append_metrics(step + 1, {})
    finally:
        opened.close()
    assert not [*run.rglob("*.part")], "a file that is half written"


# -- what a report is made of


@cache
def real_run() -> Path:
    """The folder of a short run, trained once, with rollouts, evaluations and a model card."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-run-")) / "run"
    overrides = {
        "method": "luffy", "steps": 4, "problems_per_step": 2, "rollout.group_size": 4, "rollouts_every": 2,
        "evaluation.every": 2, "evaluation.limit": 4, "output": str(folder),
    }  # fmt: skip
    train(load_config(RECIPES / "miniature.yaml", overrides))
    for name in ("checkpoints", "model"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def try_report(draw: random.Random, folder: Path) -> None:
    """A finished run with damaged files: a whole page, or a LuffyError."""
    run = folder / "run"
    shutil.copytree(real_run(), run)
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.name != ".lock")
    for path in draw.sample(files, draw.choice([1, 1, 2, 5])):
        _damage(path, draw)
    page = write_report([run], folder / "page.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>"), "a page without an end"
    assert "<script>alert(1)" not in page, "a script of the data's"


# -- all of them

KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    "data": try_data,
    "configuration": try_configuration,
    "run folder": try_run_folder,
    "report": try_report,
}


def try_case(kind: str, number: int, seed: int) -> str:
    """One case. Returns `sound`, `message`, or what was found."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        with _deadline():
            KINDS[kind](random.Random(f"{seed}/{kind}/{number}"), folder)
        return "sound"
    except LuffyError as error:
        return "message" if str(error).strip() else "finding: an empty message"
    except BaseException as error:
        return f"finding: {type(error).__name__}: {str(error)[:200]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _deadline() -> Iterator[None]:
    def late(number: int, _: object) -> None:
        spent = (
            f"{SECONDS} seconds of the processor" if number == signal.SIGPROF else f"{PATIENCE} seconds by the clock"
        )
        raise TimeoutError(f"more than {spent}")

    before = {number: signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def try_in_a_process(cases: Sequence[tuple[str, int]], seed: int) -> list[str]:
    """The outcome of each case, tried in a process of their own; if it dies, that is a finding of the one it was at."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        os.close(reading)
        for kind, number in cases:
            os.write(writing, (json.dumps(try_case(kind, number, seed)) + "\n").encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        outcomes = [str(json.loads(line)) for line in file]
    _, status = os.waitpid(process, 0)
    if len(outcomes) < len(cases):
        outcomes.append(f"finding: the process ended with status {os.waitstatus_to_exitcode(status)}")
        outcomes += try_in_a_process(cases[len(outcomes) :], seed) if len(outcomes) < len(cases) else []
    return outcomes


def main() -> None:
    """Try all cases, print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"Of {', '.join(KINDS)}; separated by commas.")
    parser.add_argument("--only", default="", help="KIND/NUMBER: this case, without catching anything.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "fuzz.json")
    given = parser.parse_args()
    import torch  # noqa: F401 (before the processes that need it are forked)

    logging.disable(logging.CRITICAL)
    real_run()  # before forking, too
    if given.only:
        kind, _, number = given.only.rpartition("/")
        KINDS[kind](random.Random(f"{given.seed}/{kind}/{number}"), Path(tempfile.mkdtemp(prefix="fuzz-")))
        return
    cases = [(kind, number) for number in range(given.count // len(KINDS) + 1) for kind in KINDS][: given.count]
    chosen = given.kinds.split(",")
    cases = [(kind, number) for kind, number in cases if kind in chosen]
    counts, findings = kept_counts(set(KINDS) - set(chosen), given.seed, given.output)
    for begin in range(0, len(cases), AT_ONCE):
        part = cases[begin : begin + AT_ONCE]
        for (kind, number), outcome in zip(part, try_in_a_process(part, given.seed), strict=True):
            counts[kind][outcome.partition(":")[0]] += 1
            if outcome.startswith("finding"):
                findings[f"{kind}/{number}"] = outcome
                print(f"{kind}/{number}: {outcome}", flush=True)
        write_counts(counts, findings, given.seed, given.output)
    sys.exit(bool(findings))


def kept_counts(kinds: set[str], seed: int, path: Path) -> tuple[dict[str, Counter[str]], dict[str, str]]:
    """Counts and findings of an earlier run with the same seed, of these kinds; nothing yet of the others."""
    record = json.loads(path.read_text()) if kinds and path.exists() else {}
    if record and record["seed"] != seed:
        sys.exit(f"{path} is of seed {record['seed']}; give --kinds no value, or another --output.")
    counts = {kind: Counter(record.get("counts", {}).get(kind, {}) if kind in kinds else {}) for kind in KINDS}
    return counts, {case: what for case, what in record.get("findings", {}).items() if case.rpartition("/")[0] in kinds}


def write_counts(counts: dict[str, Counter[str]], findings: dict[str, str], seed: int, path: Path) -> None:
    """The counts so far, as JSON and as the table of docs/reliability.md."""
    table = ["| mutated | cases | sound | a clear message | findings |", "|---|---|---|---|---|"]
    for kind, count in counts.items():
        table.append(f"| {kind} | {count.total()} | {count['sound']} | {count['message']} | {count['finding']} |")
    print("\n".join(table), flush=True)
    write_table("fuzz", "\n".join(table))
    record = {"seed": seed, "counts": {kind: dict(count) for kind, count in counts.items()}, "findings": findings}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
