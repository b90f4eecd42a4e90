"""Run folders with known truth: what a run leaves on disk, made up instead of trained."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from luffy.data.miniature import evaluation_problems, training_problems

SETS = ("hard", "other_heading", "longer", "short", "worked", "unrelated")
BASE_ACCURACY = {"hard": 0.0, "other_heading": 0.0, "longer": 0.0, "short": 0.02, "worked": 1.0, "unrelated": 0.67}
TRUTH: dict[str, dict[str, Any]] = {  # final accuracy by set, final entropy, share in the teacher's style
    "luffy": {"accuracy": (0.99, 0.98, 0.52, 0.7, 0.8, 0.5), "entropy": 0.10, "style": 0.05, "middle": 45},
    "mixed": {"accuracy": (0.95, 0.94, 0.45, 0.6, 0.7, 0.4), "entropy": 0.05, "style": 0.10, "middle": 70},
    "on_policy": {"accuracy": (0.005, 0.0, 0.0, 0.02, 1.0, 0.66), "entropy": 0.02, "style": 0.0, "middle": 60},
    "sft": {"accuracy": (0.10, 0.05, 0.02, 0.05, 0.1, 0.1), "entropy": 0.3, "style": 1.0, "middle": 80},
    "sft_rl": {"accuracy": (0.995, 0.97, 0.6, 0.75, 0.85, 0.57), "entropy": 0.06, "style": 1.0, "middle": 60},
    "rl_sft": {"accuracy": (0.03, 0.02, 0.01, 0.02, 0.3, 0.3), "entropy": 0.08, "style": 0.9, "middle": 90},
}
TRACED = ("luffy", "mixed", "rl_sft")


def write_run(
    folder: Path,
    method: str = "luffy",
    seed: int = 0,
    *,
    steps: int = 60,
    problems: int = 60,
    sets: tuple[str, ...] = SETS,
    prefix: str = "miniature/",
    accuracy: dict[str, float] | None = None,
    until: int | None = None,
    status: str | None = None,
    every: int = 10,
    rollouts: bool = True,
    text: str | None = None,
) -> Path:
    """Write a run folder. accuracy: overrides the truth by set. until: the run was stopped after that step."""
    generator = np.random.default_rng([seed, sum(map(ord, method))])
    truth = TRUTH.get(method, TRUTH["luffy"])
    final = dict(zip(SETS, truth["accuracy"], strict=True)) | (accuracy or {})
    done = steps if until is None else until
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder, method, seed, steps)
    lines = [_metrics(method, truth, step, steps, final["hard"], generator) for step in range(1, done + 1)]
    _write_lines(folder / "metrics.jsonl", lines)
    records, last = [], {}
    for step in range(0, done + 1):
        names = sets if step in (0, steps) else sets[:1] if step % every == 0 else ()
        for name in names:
            share = BASE_ACCURACY.get(name, 0.2)
            share += (final[name] - share) * (_progress(truth, step, steps) if step else 0)
            tokens = {"tokens/trained": 9000 * step, "tokens/generated": 0 if method == "sft" else 7000 * step}
            record = _evaluate(folder, step, prefix, name, share, problems, truth["style"], generator) | tokens
            records.append({"step": step} | record)
            last[record["set"]] = {key: value for key, value in record.items() if "/" not in key and key != "set"}
    _write_lines(folder / "evaluations.jsonl", records)
    for step in (1, done // 2, done) if rollouts and done and method != "sft" else ():
        groups = _groups(method, _progress(truth, step, steps), generator, text)
        _write_lines(folder / "rollouts" / f"step-{step:06d}.jsonl", groups)
        _write_lines(folder / "traces" / f"step-{step:06d}.jsonl", _traces(_progress(truth, step, steps)))
    tokens = {"trained": 9000 * done, "generated": 0 if method == "sft" else 7000 * done}
    summary = {"method": method, "seed": seed, "status": status or ("finished" if until is None else "stopped")}
    summary |= {"steps": done, "seconds": 0.5 * done, "tokens": tokens, "evaluations": last}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def write_runs(folder: Path, methods: tuple[str, ...] = tuple(TRUTH), seeds: int = 3, **options: Any) -> Path:
    """Write a comparison: METHOD/seed-K."""
    for method in methods:
        for seed in range(seeds):
            write_run(folder / method / f"seed-{seed}", method, seed, **options)
    return folder


def _progress(truth: dict[str, Any], step: int, steps: int) -> float:
    """Share of the way from the base to the final accuracy."""
    return 1.0 if step == steps else 1 / (1 + math.exp(-(120 * step / steps - truth["middle"]) / 7))


def _metrics(
    method: str, truth: dict[str, Any], step: int, steps: int, hard: float, generator: np.random.Generator
) -> dict[str, Any]:
    sft = method == "sft" or (method == "sft_rl" and step <= steps // 3)
    way = _progress(truth, step, steps)
    reward = float(np.clip(hard * way + generator.normal(0, 0.02), 0, 1))
    times = {"time/generate": 0.2, "time/verify": 0.01, "time/update": 0.15, "time/synchronise": 0.01, "time/step": 0.4}
    common = {"step": step, "phase": "sft" if sft else "rl", "update/loss": 0.3 - 0.2 * way, "update/skipped": 0}
    common |= {"update/gradient_norm": 1.0, "perf/padding_fraction": 0.1, "perf/tokens_per_second": 4e4}
    common |= {"optimizer/learning_rate": 5e-5, "tokens/trained": 9000 * step}
    if sft:
        return common | {"tokens/generated": 0, "time/update": 0.2, "time/step": 0.21}
    own = {
        "reward/on_policy": reward,
        "groups/all_failed": float((1 - reward) ** 7),
        "groups/all_solved": reward**7,
        "policy/entropy": max(0.0, 0.35 + (truth["entropy"] - 0.35) * way + generator.normal(0, 0.01)),
        "policy/engine_gap": 1e-6,
        "completion/length": 4 + 40 * way + generator.normal(0, 0.5),
        "completion/truncated": 0.01,
        "tokens/generated": 7000 * step,
    }
    if method in TRACED:
        own |= {"reward/traces": 1.0, "guidance/trace_probability": 0.05 + 0.7 * way}
        own |= {"guidance/trace_advantage": 0.875 * (1 - reward)} if method != "rl_sft" else {}
    return common | own | times


def _evaluate(
    folder: Path,
    step: int,
    prefix: str,
    name: str,
    share: float,
    count: int,
    style: float,
    generator: np.random.Generator,
) -> dict[str, Any]:
    source = evaluation_problems(name if name in SETS else "hard", count)
    solved = generator.permutation(count) < round(share * count + generator.normal(0, 0.3))
    lines = []
    for problem, right in zip(source, solved, strict=True):
        given = problem.answer if right else "00"
        sample = {"text": f"1+1=02#{given}", "correct": bool(right), "finished": True, "tokens": 40, "extracted": given}
        lines.append({"id": problem.id, "prompt": problem.prompt, "answer": problem.answer, "samples": [sample]})
    _write_lines(folder / "evaluations" / f"step-{step:06d}" / f"{prefix}{name}.jsonl".replace("/", "-"), lines)
    mean = float(solved.mean())
    interval = {"value": mean, "low": max(0, mean - 0.05), "high": min(1, mean + 0.05), "n": count}
    extra = {"style/teacher": style if step else 0.0} if prefix.startswith("miniature") else {}
    return {"set": prefix + name, "avg@1": interval, "completion/length": 40.0, "completion/truncated": 0.0} | extra


def _groups(method: str, way: float, generator: np.random.Generator, text: str | None) -> list[dict[str, Any]]:
    source = training_problems(problems=8, traced=8, style="teacher", wrong=0.0, operations=(5, 8), seed=0)
    groups = []
    for index, problem in enumerate(source):
        own = []
        for _ in range(7 if method in TRACED else 8):
            right = bool(generator.random() < way)
            words = text or (problem.traces[0].text.replace(",", "") if right else f"#{generator.integers(100):02d}")
            own.append(_rollout(words, right, False, generator if index < 4 else None))
        if method in TRACED:
            own.append(_rollout(problem.traces[0].text, True, True, generator if index < 4 else None))
        mean = float(np.mean([rollout["reward"] for rollout in own]))
        rollouts = [rollout | {"advantage": rollout["reward"] - mean} for rollout in own]
        stated = {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer, "source": problem.source}
        groups.append({"problem": stated, "rollouts": rollouts})
    return groups


def _traces(way: float) -> list[dict[str, Any]]:
    """Two watched traces; every third token starts unlikely and is learned on the way."""
    source = training_problems(problems=2, traced=2, style="teacher", wrong=0.0, operations=(5, 8), seed=0)
    lines = []
    for problem in source:
        tokens = [*problem.traces[0].text, "<eos>"]
        logprobs = [round(math.log(0.1 + 0.85 * way if place % 3 == 0 else 0.98), 4) for place in range(len(tokens))]
        lines.append({"problem": problem.id, "tokens": tokens, "logprobs": logprobs, "entropy": [0.1] * len(tokens)})
    return lines


def _rollout(text: str, right: bool, off_policy: bool, generator: np.random.Generator | None) -> dict[str, Any]:
    rollout: dict[str, Any] = {"text": text, "off_policy": off_policy, "reward": float(right), "finished": True}
    if generator is not None:
        tokens = [*text, "<eos>"]
        rollout["tokens"] = tokens
        rollout["logprobs"] = np.log(generator.beta(6, 0.5, len(tokens))).round(4).tolist()
        rollout["entropy"] = generator.beta(1, 4, len(tokens)).round(3).tolist()
    return rollout


def _write_config(folder: Path, method: str, seed: int, steps: int) -> None:
    config = {
        "method": method,
        "model": "miniature",
        "seed": seed,
        "steps": steps,
        "output": str(folder),
        "problems_per_step": 16,
        "data": {"train": "miniature", "miniature": {"problems": 256, "traced": 256, "shortest": 5, "longest": 8}},
        "rollout": {"group_size": 8, "max_tokens": 84},
        "optimizer": {"learning_rate": 1e-4 if method == "on_policy" else 5e-5},
    }
    document = {
        "config": config,
        "data_digest": "sha256:1234",
        "versions": {"python": "3.12.1", "torch": "2.9.0", "luffy-rl": "0.1.0"},
        "hardware": {"processor": "A processor", "cores": 2, "threads": 2, "gpu": None},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(document))


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
