"""How methods are named, ordered and coloured, the same in every table and chart.

The colours are those of Okabe and Ito, which readers with any colour vision tell apart, darkened for a light page and
lightened for a dark one; each method also has its own dash pattern.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from luffy.comparison.collect import BASE


@dataclass(frozen=True, slots=True)
class Look:
    """What a method looks like."""

    title: str
    light: str  # on a light page
    dark: str  # on a dark one
    dash: tuple[int, ...] = ()  # line and gap in pixels; empty: solid


LOOKS: dict[str, Look] = {  # in the order of the paper's tables
    BASE: Look("Base model", "#6b7280", "#9ca3af"),
    "on_policy": Look("On-policy RL", "#4f5661", "#c3c9d1", (2, 2)),
    "on_policy_shaping": Look("On-policy RL with shaping", "#8a6d00", "#f0e442", (2, 3)),
    "sft": Look("SFT", "#b07400", "#e8ad2c", (8, 3)),
    "rl_sft": Look("RL with SFT loss", "#b0578a", "#dd94bd", (5, 2, 1, 2)),
    "sft_rl": Look("SFT then RL", "#c14a00", "#f2813f", (10, 2, 2, 2)),
    "mixed": Look("Mixed, no shaping", "#00805e", "#2fc59b", (5, 3)),
    "luffy_clip": Look("LUFFY with clip", "#2b8cc4", "#7cc7f2", (6, 2)),
    "luffy": Look("LUFFY", "#0059a8", "#4ea6f0"),
}
SPARE = tuple(look for name, look in LOOKS.items() if name != BASE)


def order(methods: Iterable[str]) -> list[str]:
    """Methods in the order of the paper's tables, unknown ones first as they came."""
    known = list(LOOKS)
    return sorted(methods, key=lambda method: known.index(method) if method in known else -1)


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """The look of each method, in order; an unknown one borrows colour and dash of a known one that is not there."""
    methods = order(methods)
    free = [look for look in reversed(SPARE) if look.title not in {LOOKS[m].title for m in methods if m in LOOKS}]
    chosen = {}
    for index, method in enumerate(methods):
        if method in LOOKS:
            chosen[method] = LOOKS[method]
        else:
            lent = free.pop(0) if free else SPARE[index % len(SPARE)]
            chosen[method] = Look(method, lent.light, lent.dark, lent.dash)
    return chosen
