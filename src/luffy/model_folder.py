"""Where a model lies, and whether its folder can be one, before anything heavy is imported to load it.

Refuses what could run foreign code: pickled weights and Python files in the model folder, unless asked for by name.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from luffy.config import PolicyConfig, nearest
from luffy.errors import ModelError
from luffy.files import parse_json

BUILT_IN = ("miniature", "miniature-eager")


def model_folder(name: str) -> str:
    """Where the model of that name lies: the package's folder for a built-in name, else the name itself."""
    if name in BUILT_IN and not Path(name).exists():
        return str(resources.files("luffy") / "assets" / name)
    return name


def local_model(name: str) -> Path | None:
    """The folder of a model; None: the name is one of the hub. Raises ModelError for a folder that is not there."""
    folder = model_folder(name)
    path = Path(folder)
    looks_local = path.is_absolute() or folder.startswith((".", "~")) or folder.count("/") > 1 or path.exists()
    if not looks_local:
        return None
    if not path.is_dir():
        raise ModelError(f"{folder}: there is no such model folder.{_neighbours(path)}")
    return path


def check_model(name: str, policy: PolicyConfig) -> None:
    """Refuse a folder that is none, that is incomplete, or that could run foreign code; a hub name is left alone.

    Raises ModelError naming the folder and what is missing or refused.
    """
    folder = local_model(name)
    if folder is None:
        return
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: not a Hugging Face model folder, config.json is missing.")
    files = [file.name for file in folder.iterdir()]
    if not any(file.endswith(".safetensors") for file in files):
        pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth"))]
        if not pickled:
            raise ModelError(f"{folder}: holds no weights (*.safetensors).")
        if not policy.allow_pickle:
            raise ModelError(
                f"{folder}: {pickled[0]} is a pickle, which can run code when it is loaded. Convert it to safetensors, "
                "or set policy.allow_pickle=true if you trust its author."
            )
    if "auto_map" in read_model_config(folder / "config.json") and not policy.trust_remote_code:
        raise ModelError(
            f"{folder}: the model brings its own Python code. "
            "Set policy.trust_remote_code=true if you trust its author."
        )


def is_cached(name: str) -> bool:
    """Whether the hub's cache holds a model of that name; the hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except ValueError:  # a name that the hub cannot have
        return False


def read_model_config(file: Path) -> dict[str, Any]:
    """What a model's config.json says. Raises ModelError where it cannot be read."""
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{file}: cannot be read as JSON ({error}).") from None
    if not isinstance(config, dict):
        raise ModelError(f"{file}: expected an object.")
    return config


def _neighbours(path: Path) -> str:
    parent = path.parent
    return nearest(path.name, [entry.name for entry in parent.iterdir()]) if parent.is_dir() else ""
