"""The README of a trained model."""

from __future__ import annotations

from typing import Any

from luffy.algorithm import METHODS
from luffy.config import Config
from luffy.training.checkpoint import Progress


def model_card(config: Config, progress: Progress, evaluations: dict[str, dict[str, Any]]) -> str:
    """The README of a trained model: what it was trained from, on what, how, and what it achieves."""
    rows = [
        f"| {name} | {metric} | {100 * value['value']:.1f} % [{100 * value['low']:.1f}, {100 * value['high']:.1f}] |"
        for name, metrics in evaluations.items()
        for metric, value in metrics.items()
    ]
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [reinforcement-learning, luffy]",
            "---",
            "",
            f"# {config.model}, trained with {config.method}",
            "",
            f"{METHODS[config.method].summary} ({METHODS[config.method].source})",
            "",
            f"- Base: `{config.model}`. Data: `{config.data.train}`. Steps: {progress.step}. Seed: {config.seed}.",
            f"- Tokens trained: {progress.tokens_trained:,}. Tokens generated: {progress.tokens_generated:,}.",
            "",
            "| benchmark | metric | value [95 % interval] |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )
