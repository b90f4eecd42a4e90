"""The README of a trained model: what it is, how to make it again, and what it achieves.

It travels with the model, so nothing of the machine is in it: of a path only the last part, no user, no secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from luffy.algorithm import METHODS
from luffy.config import MINIATURE, Config, flatten
from luffy.model_folder import BUILT_IN
from luffy.redaction import without_secrets
from luffy.training.checkpoint import Progress

NOT_OF_THE_MODEL = ("output", "methods", "tracker")  # settings that change nothing of what is learned


def model_card(config: Config, progress: Progress, evaluations: dict[str, dict[str, Any]]) -> str:
    """Method, data, results with intervals, every setting, the command, versions; a licence is left to be chosen."""
    record = _record(Path(config.output) / "config.yaml")
    method, base = METHODS[config.method], shown_place(config.model)
    sections = [
        _front_matter(config),
        f"# {base}, trained with {config.method}",
        f"{method.summary} ({method.source})",
        "\n".join(_facts(config, progress, record)),
        "## Results",
        _results(evaluations),
        "## How to make it again",
        "With the package luffy-rl, these settings in `recipe.yaml`, and the same data:",
        "    luffy train recipe.yaml",
        f"```yaml\n{_settings(config)}```",
        "## Made with",
        _made_with(record),
        "## Licence and use",
        "Licence: **to be filled in before this model is passed on**. The terms of the base model and of the training "
        "data apply to it. It was trained to reach answers that a verifier accepts; nothing else was measured.",
    ]
    return without_secrets("\n\n".join(sections) + "\n")


def shown_place(name: str) -> str:
    """A model or data file as it may be told to others: of a path outside the working folder only its last part."""
    path = Path(name)
    outside = path.is_absolute() or name.startswith("~") or ".." in path.parts
    return path.name if outside else name


def _front_matter(config: Config) -> str:
    on_hub = config.model not in BUILT_IN and not Path(config.model).exists() and config.model.count("/") == 1
    lines = ["library_name: transformers", "pipeline_tag: text-generation", "license: other  # to be filled in"]
    lines += [f"base_model: {config.model}"] if on_hub else []
    return "\n".join(["---", *lines, "tags: [reinforcement-learning, luffy]", "---"])


def _facts(config: Config, progress: Progress, record: Mapping[str, Any]) -> list[str]:
    data = "the built-in task" if config.data.train == MINIATURE else f"`{shown_place(config.data.train)}`"
    digest = f", SHA-256 `{record['data_digest']}`" if record.get("data_digest") else ""
    return [
        f"- Base: `{shown_place(config.model)}`",
        f"- Data: {data}{digest}",
        f"- Verifier: `{shown_place(config.reward.kind)}`",
        f"- Steps: {progress.step} of {config.problems_per_step} problems, {config.rollout.group_size} rollouts each; "
        f"seed {config.seed}",
        *(
            [
                f"- Adapter: LoRA of rank {config.adapter.rank}, alpha {config.adapter.alpha:g}; merged into these "
                "weights, and kept beside them in the run's folder `adapter`",
                *(
                    ["- The base was held in 4 bits (nf4); these weights are dequantised"]
                    * bool(config.adapter.quantize)
                ),
            ]
            if config.adapter.rank is not None
            else []
        ),
        f"- Tokens trained: {progress.tokens_trained:,}; generated: {progress.tokens_generated:,}",
    ]


def _results(evaluations: dict[str, dict[str, Any]]) -> str:
    rows = [
        f"| {name} | {metric} | {100 * value['value']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}] "
        f"| {value['n']} |"
        for name, metrics in evaluations.items()
        for metric, value in metrics.items()
    ]
    if not rows:
        return "Nothing was measured."
    return "\n".join(["| benchmark | metric | value [95 % interval] | problems |", "|---|---|---|---|", *rows])


def _settings(config: Config) -> str:
    """Every setting that is not the default, as a recipe."""
    defaults = flatten(Config())
    places = {
        "model": shown_place(config.model),
        "data.train": shown_place(config.data.train),
        "evaluation.source": shown_place(config.evaluation.source or "") or None,
        "evaluation.benchmarks": [shown_place(name) for name in config.evaluation.benchmarks],
        "evaluation.watch": [shown_place(name) for name in config.evaluation.watch],
    }
    tree: dict[str, Any] = {"model": places["model"], "method": config.method}
    for key, value in flatten(config).items():
        if value == defaults[key] or key in NOT_OF_THE_MODEL:
            continue
        *sections, last = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        value = places.get(key, value)
        branch[last] = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _made_with(record: Mapping[str, Any]) -> str:
    versions = record.get("versions") or {}
    hardware = record.get("hardware") or {}
    lines = [", ".join(f"{name} {version}" for name, version in versions.items())] if versions else []
    if hardware:
        lines.append(f"{hardware.get('gpu') or hardware.get('processor')}, {hardware.get('threads')} threads")
    return "; ".join(lines) + "." if lines else "Versions were not recorded."


def _record(path: Path) -> dict[str, Any]:
    """What the run wrote down when it began; empty where it cannot be read."""
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return record if isinstance(record, dict) else {}
