"""Arguments and options that several commands share, and the names in a recipe that are looked up before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luffy.completion import complete_methods, complete_recipe, complete_setting
from luffy.config import MINIATURE, Config

Recipe = Annotated[
    Path,
    typer.Argument(
        help="YAML file, or config.yaml of a run; `luffy config` lists its keys.", autocompletion=complete_recipe
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Replace keys of the recipe: steps=50 data.train=my.jsonl",
        autocompletion=complete_setting,
    ),
]
FromRecipe = Annotated[
    Path | None,
    typer.Option(help="Take model, columns, limits and verifier from this recipe.", autocompletion=complete_recipe),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Methods = Annotated[
    str, typer.Option(help="Comma-separated; `luffy methods` lists them.", autocompletion=complete_methods)
]
Price = Annotated[
    float | None, typer.Option(min=0, help="Dollars a device and hour (a GPU, or the machine without one).")
]


def check_names(config: Config, *, training: bool = True) -> None:
    """Refuse names of nothing (verifier, model, benchmarks, data) before the seconds that torch takes to import."""
    from luffy.data import check_benchmark_name, check_data_name, parse_benchmark
    from luffy.model_folder import check_model
    from luffy.reward import resolve_verifier

    resolve_verifier(config.reward.kind)
    if training:
        check_model(config.model, config.policy)
    if training and config.data.train != MINIATURE:
        check_data_name(config.data.train)
    for name in config.evaluation.benchmarks:
        check_benchmark_name(parse_benchmark(name)[0], held_out=config.data.holdout > 0)
