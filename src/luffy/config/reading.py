"""From a file and overrides to a checked recipe; every mistake is a sentence that names where it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from luffy.config.keys import flatten, known_keys
from luffy.config.names import nearest
from luffy.config.recipe import Config
from luffy.errors import ConfigError
from luffy.redaction import secrets


def load_config(path: str | Path | None = None, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Read a recipe, apply the overrides, validate.

    path: a YAML file, the config.yaml of a run folder, or None for the defaults. overrides: `dotted.key=value` strings,
    values in YAML syntax, or a mapping of dotted keys to values. Raises ConfigError naming file, key and the nearest
    right name.
    """
    where = str(path) if path is not None else "configuration"
    tree = _read_yaml(Path(path)) if path is not None else {}
    given = dict(overrides) if isinstance(overrides, Mapping) else dict(map(parse_override, overrides))
    tree["methods"] = _settings_of_methods(tree.get("methods"), given, where)
    method = str(given.get("method", tree.get("method", Config.model_fields["method"].default)))
    for key, value in tree["methods"].get(method, {}).items():
        _assign(tree, key, value, f"{where}: methods.{method}")
    for key, value in given.items():
        if not key.startswith("methods."):
            _assign(tree, key, value, "override")
    config = _validate(tree, where)
    _refuse_secrets(config, where)
    return config


def _refuse_secrets(config: Config, where: str) -> None:
    """A configuration is written into run folders, reports and model cards: no secret may stand in it."""
    values = {key: str(value) for key, value in flatten(config).items()}
    for variable, secret in secrets().items():
        for key, value in values.items():
            if secret in value:
                raise ConfigError(
                    f"{where}: {key} holds the value of the environment variable {variable}, which would then stand in "
                    "config.yaml. Leave it out: what needs it takes it from the environment."
                )


def parse_override(text: str) -> tuple[str, Any]:
    """Split `dotted.key=value` at the first `=`; the value is YAML."""
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"override {text!r}: expected key=value, for example steps=50.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not valid YAML ({_yaml_problem(error)}).") from None
    except (RecursionError, ValueError) as error:  # ValueError: a date that there is not
        raise ConfigError(f"override {text[:80]!r}: the value cannot be read ({_unread(error)}).") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such recipe file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    try:
        tree = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML ({_yaml_problem(error)}).") from None
    except (RecursionError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({_unread(error)}).") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got a {type(tree).__name__}.")
    return tree["config"] if isinstance(tree.get("config"), dict) else tree  # the record in a run folder


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, which plain YAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _unread(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _yaml_problem(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)


def _settings_of_methods(recipe: Any, given: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """What the recipe says under `methods`, changed by overrides `methods.NAME.KEY`; names and keys are known ones."""
    if recipe is not None and not isinstance(recipe, dict):
        raise ConfigError(f"{where}: 'methods' expects method names with settings below them.")
    settings: dict[str, dict[str, Any]] = {}
    for method, changes in (recipe or {}).items():
        if not isinstance(changes, dict | None):
            kind = type(changes).__name__
            raise ConfigError(f"{where}: methods.{method}: expected `dotted.key: value` pairs, got {kind}.")
        for key, value in (changes or {}).items():
            _check_of_method(str(method), str(key), f"{where}: methods.{method}")
            settings.setdefault(str(method), {})[str(key)] = value
    for name, value in given.items():
        if name.startswith("methods."):
            method, _, key = name.removeprefix("methods.").partition(".")
            _check_of_method(method, key, f"override {name!r}")
            settings.setdefault(method, {})[key] = value
    return settings


def _check_of_method(method: str, key: str, origin: str) -> None:
    from luffy.algorithm.methods import METHODS

    if method not in METHODS:
        raise ConfigError(f"{origin}: unknown method {method!r}.{nearest(method, METHODS)}")
    known = [one for one in known_keys() if one not in ("method", "methods")]
    if key not in known:
        raise ConfigError(f"{origin}: unknown key {key!r}.{nearest(key, known)}")


def _assign(tree: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Set a dotted key in the nested tree."""
    known = known_keys()
    if key not in known:
        raise ConfigError(f"{origin}: unknown key {key!r}.{nearest(key, known)}")
    *sections, last = key.split(".")
    for section in sections:
        if tree.get(section) is None:
            tree[section] = {}
        if not isinstance(tree[section], dict):
            raise ConfigError(f"{origin}: {key!r} cannot be set, {section!r} is not a section in the recipe.")
        tree = tree[section]
    tree[last] = value


def _validate(tree: dict[str, Any], where: str) -> Config:
    given = {key: value for key, value in tree.items() if value is not None or key not in _sections()}
    try:
        return Config.model_validate(given)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item, where) for item in error.errors())) from None


def _sections() -> set[str]:
    """Keys that hold other keys; one with nothing below it in a recipe is as good as absent."""
    return {key.partition(".")[0] for key in known_keys() if "." in key}


def _explain(item: Any, where: str) -> str:
    """One validation error as a sentence."""
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{where}: unknown key {key!r}.{nearest(key, known_keys())}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{where}: {key + ': ' if key else ''}{message.rstrip('.')}{'' if message.endswith('?') else '.'}"
    return f"{where}: '{key}' {message[0].lower()}{message[1:]}, got {item['input']!r}."
