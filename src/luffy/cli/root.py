"""The root that the commands are put into, and what it ends with."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

ORDER = ("train", "compare", "eval", "report", "config", "methods", "doctor", "plan", "data")  # of `luffy --help`


class CommandInterruptedError(Exception):
    """Ctrl-C in the middle of a command."""


class _Commands(TyperGroup):
    """The commands; typer ends them on Ctrl-C without a word, and `main` has one to say."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise CommandInterruptedError from None


application = typer.Typer(
    name="luffy",
    cls=_Commands,
    help="Train language models to reason: reinforcement learning guided by off-policy traces (LUFFY) and its rivals.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_commands = typer.Typer(help="Look at problems and traces before training on them.", no_args_is_help=True)
application.add_typer(data_commands, name="data")

STOPPED, TERMINATED = 130, 143  # exit status of a run that was asked to stop, as shells have it for the two signals
