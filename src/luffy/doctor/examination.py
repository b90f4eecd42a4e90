"""All examinations in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from luffy.doctor.findings import Finding
from luffy.doctor.machine import find_devices, find_machine
from luffy.doctor.packages import find_libraries, find_options
from luffy.doctor.recipes import find_needs, find_recipes
from luffy.doctor.trial import reach_hub, try_generation


def examine(recipes: Sequence[Path] = (), *, hub: bool = False) -> Iterator[Finding]:
    """Look at everything, one finding after the other.

    recipes: what is missing for these is a fault; without any, the recipes in `recipes/` are looked at for information.
    hub: ask the hub whether it answers, which needs the network.
    """
    yield from find_machine()
    libraries = list(find_libraries())
    yield from libraries
    yield from find_options()
    if any(one.state == "missing" for one in libraries):
        yield Finding("trial", "generation", "not tried", "missing", "bring the libraries in order first")
        return
    yield from find_devices()
    yield from find_needs(recipes) if recipes else find_recipes(Path("recipes"))
    if hub:
        yield reach_hub()
    yield try_generation()
