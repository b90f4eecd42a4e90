r"""How long `luffy data check` takes for a data set of the paper's size, and how much memory.

`python benchmarks/data_check.py [--rows 45000] [--tokens 4000]`. Goal: 45,000 rows with traces of 4,000 tokens in under
5 minutes on two cores, in memory that does not grow with the file. The file is made here: mathematical prose with TeX,
a thought that is closed, a boxed answer, and here and there something wrong. The tokenizer is a byte-level BPE of
16,000 tokens trained on the same prose, which divides texts into words as that of Qwen2.5 does. The real command runs
as a process of its own, with everything on: the lengths, the verifier `math`, the limits, the closing mark, the overlap
with a benchmark of 1,000 problems. A file of a quarter of the rows comes first: the peak of both tells whether
memory grows. The load before the start tells what else ran: 0 is an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import report

GOAL_ROWS, GOAL_SECONDS = 45_000, 300.0
VOCABULARY, SENTENCES = 16_000, 20_000
WRONG = 100  # every so many traces ends in a wrong answer
LIMIT = 8192  # tokens

# How the tokenizers of Qwen2.5 divide a text before they merge: single digits, words with the space before them.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SUBJECTS = ["the sum", "a triangle", "this sequence", "the polynomial", "each prime factor", "our first guess",
            "the remaining angle", "the number of ways", "that integral", "the greatest common divisor"]  # fmt: skip
VERBS = ["is equal to", "cannot be more than", "therefore becomes", "turns out to be", "must divide", "is bounded by"]
OPENINGS = ["Wait,", "So", "Let me check:", "Hmm,", "Alternatively,", "By symmetry,", "First,", "But then", "Hence"]


def main() -> None:
    """Make the files, run the command on each, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=GOAL_ROWS)
    parser.add_argument("--tokens", type=int, default=4000, help="of a trace")
    arguments = parser.parse_args()
    generator = random.Random(0)
    sentences = [sentence(generator) for _ in range(SENTENCES)]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lengths = train_tokenizer(sentences, folder / "tokenizer")
        write(folder / "benchmark.jsonl", problems(generator, sentences, lengths, 1000, 0))
        for count in (arguments.rows // 4, arguments.rows):
            path = folder / "problems.jsonl"
            write(path, problems(generator, sentences, lengths, count, arguments.tokens))
            rows.append(check(path, folder, count, arguments.tokens))
            path.unlink()
    small, large = rows
    a_row = (large["seconds"] - small["seconds"]) / (large["rows"] - small["rows"])  # what starting takes aside
    extrapolated = large["seconds"] + a_row * (GOAL_ROWS - large["rows"])
    reached = "yes" if large["seconds"] < GOAL_SECONDS else "no"
    small |= {"peak, times": 1.0, f"seconds for {GOAL_ROWS}": "", "goal": ""}
    large |= {
        "peak, times": large["peak MB"] / small["peak MB"],
        f"seconds for {GOAL_ROWS}": extrapolated,
        "goal": reached if large["rows"] >= GOAL_ROWS else f"needs --rows {GOAL_ROWS}",
    }
    report("data_check", rows)


def sentence(generator: random.Random) -> str:
    """A sentence such as people and models write about mathematics."""
    a, b, c = (generator.randint(1, 9999) for _ in range(3))
    formula = generator.choice(
        [
            f"${a} + {b} = {a + b}$",
            f"$\\frac{{{a}}}{{{b}}}$",
            f"\\( x^{{{a % 10}}} - {b}x + {c} \\)",
            str(a),
            f"{a}/{b}",
        ]
    )
    return (
        f"{generator.choice(OPENINGS)} {generator.choice(SUBJECTS)} {generator.choice(VERBS)} {formula}, "
        f"and {generator.choice(SUBJECTS)} {generator.choice(VERBS)} {c}.\n"
    )


def train_tokenizer(sentences: list[str], folder: Path) -> list[int]:
    """Save a tokenizer as a folder. Returns the tokens of each sentence."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sentences, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return [len(encoding) for encoding in tokenizer.encode_batch(sentences)]


def problems(
    generator: random.Random, sentences: list[str], lengths: list[int], count: int, tokens: int
) -> Iterator[dict[str, Any]]:
    """Problems with a trace of about `tokens` tokens each; without any where that is 0."""
    for number in range(count):
        prompt = f"Problem {number}: " + "".join(generator.choice(sentences) for _ in range(3))
        answer = f"\\frac{{{generator.randint(1, 999)}}}{{{generator.randint(2, 99)}}}"
        row: dict[str, Any] = {"prompt": prompt, "answer": answer}
        if tokens:
            parts, left = ["<think>\n"], tokens - 20
            while left > 0:
                index = generator.randrange(len(sentences))
                parts.append(sentences[index])
                left -= lengths[index]
            found = "1" if number % WRONG == 0 else answer
            row["traces"] = ["".join(parts) + f"</think>\nThe answer is $\\boxed{{{found}}}$."]
        yield row


def write(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write the rows as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def check(path: Path, folder: Path, count: int, tokens: int) -> dict[str, Any]:
    """Run the command on a file. Returns what it took."""
    command = [
        sys.executable, "-m", "luffy", "data", "check", str(path), "--kind", "math",
        "--model", str(folder / "tokenizer"), "--closing", "</think>", "--json",
        "--benchmark", str(folder / "benchmark.jsonl"),
        f"rollout.max_tokens={LIMIT}", "data.max_prompt_tokens=1024",
    ]  # fmt: skip
    load = os.getloadavg()[0]
    with (folder / "report.json").open("w") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
    found = json.loads((folder / "report.json").read_text())
    assert os.waitstatus_to_exitcode(status) == 1, "the file has wrong traces, so the command must say 1"
    assert len(found["wrong_traces"]) == len(range(0, count, WRONG)), "every wrong trace is found, and no other"
    return {
        "rows": count,
        "tokens a trace": tokens,
        "file MB": path.stat().st_size / 2**20,
        "seconds": seconds,
        "rows a second": count / seconds,
        "processor seconds": usage.ru_utime + usage.ru_stime,
        "load before": load,
        "peak MB": usage.ru_maxrss / 2**10,
    }


if __name__ == "__main__":
    main()
