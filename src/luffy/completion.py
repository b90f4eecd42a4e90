"""What the shell offers after a Tab: recipes, settings, methods, benchmarks. Nothing slow is imported for it."""

from __future__ import annotations

from pathlib import Path

from luffy.config import known_keys

MOST_FILES = 200  # looked at in a folder; a folder of runs may hold thousands


def complete_recipe(incomplete: str) -> list[str]:
    """YAML files, and folders that may hold some."""
    folder, start = Path(incomplete), ""
    if not incomplete.endswith("/"):
        folder, start = folder.parent, folder.name
    try:
        entries = sorted(folder.iterdir())[:MOST_FILES]
    except OSError:
        return []
    prefix = incomplete[: len(incomplete) - len(start)]
    fitting = [entry for entry in entries if entry.name.startswith(start) and (start or not entry.name.startswith("."))]
    folders = [f"{prefix}{entry.name}/" for entry in fitting if entry.is_dir()]
    files = [f"{prefix}{entry.name}" for entry in fitting if entry.suffix in (".yaml", ".yml")]
    return [*files, *folders]


def complete_setting(incomplete: str) -> list[str]:
    """Keys of the configuration, as far as the `=`; of `method=` also the names."""
    key, separator, value = incomplete.partition("=")
    if separator:
        return [f"{key}={name}" for name in _methods() if name.startswith(value)] if key == "method" else []
    return [f"{one}=" for one in known_keys() if one.startswith(key) and one != "methods"]


def complete_methods(incomplete: str) -> list[str]:
    """The next of a comma-separated list of methods."""
    before, _, last = incomplete.rpartition(",")
    given = before.split(",") if before else []
    prefix = f"{before}," if given else ""
    return [f"{prefix}{name}" for name in _methods() if name.startswith(last) and name not in given]


def complete_benchmark(incomplete: str) -> list[str]:
    """Benchmarks that have a name."""
    from luffy.data import benchmark_names

    return [name for name in benchmark_names() if name.startswith(incomplete)]


def _methods() -> list[str]:
    from luffy.algorithm.methods import METHODS

    return list(METHODS)
