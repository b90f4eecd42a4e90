"""What a recipe needs, and whether it is here: model, data, verifier, packages, memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from luffy.config import Config, load_config
from luffy.doctor.findings import Finding
from luffy.errors import LuffyError, ModelError
from luffy.model_folder import BUILT_IN, check_model, is_cached, local_model
from luffy.planning import is_at_hand, make_plan
from luffy.planning.machine import GIB
from luffy.planning.shortage import device_of, how_it_fits

DATA_EXTRA = "pip install 'luffy-rl[data]'"


def find_needs(recipes: Sequence[Path]) -> Iterator[Finding]:
    """Everything that each recipe needs, a finding a need."""
    for recipe in recipes:
        try:
            config = load_config(recipe)
        except LuffyError as error:
            yield Finding("recipes", str(recipe), "cannot be used", "missing", str(error).splitlines()[0])
            continue
        for need in needs_of(config):
            yield Finding("recipes", f"{recipe}: {need.name}", need.found, need.state, need.remedy)


def find_recipes(folder: Path) -> Iterator[Finding]:
    """The recipes of a folder, a finding each; what is missing for them is no fault."""
    for recipe in sorted(folder.rglob("*.yaml")):
        lacking = [one.found for one in find_needs([recipe]) if one.state == "missing"]
        state = "optional" if lacking else "fine"
        yield Finding("recipes", str(recipe), "; ".join(lacking) or "everything is here", state)  # type: ignore[arg-type]


def needs_of(config: Config) -> Iterator[Finding]:
    """What a run of this configuration needs, each with what was found."""
    yield _model(config)
    yield from _room(config)
    yield _data(config)
    yield _verifier(config)
    for tracker in config.tracker:
        if find_spec(tracker) is None:
            yield _need(f"tracker {tracker}", "not installed", "optional", "metrics.jsonl has everything")
    for key, engine in (("rollout.engine", config.rollout.engine), ("evaluation.engine", config.evaluation.engine)):
        if engine in ("vllm", "vllm_server") and find_spec("vllm") is None and not config.rollout.vllm.server:
            yield _need(key, "vllm is not installed", "missing", "pip install vllm")
    variable = config.evaluation.api_key_variable
    if config.evaluation.engine == "endpoint" and not os.environ.get(variable):
        yield _need("key of the server", f"{variable} is not set", "optional", "set it if the server asks for one")


def _need(name: str, found: str, state: str = "fine", remedy: str = "") -> Finding:
    return Finding("recipes", name, found, state, remedy)  # type: ignore[arg-type]


def _model(config: Config) -> Finding:
    """Whether a run would take the model: by the check that it makes itself, before it loads anything."""
    name = config.model
    try:
        check_model(name, config.policy)
        folder = local_model(name)
    except ModelError as error:
        return _need("model", f"{name} cannot be used", "missing", str(error))
    if name in BUILT_IN:
        return _need("model", f"{name}, built in")
    if folder is not None:
        return _need("model", f"{name}, a folder")
    if is_cached(name):
        return _need("model", f"{name}, in the hub's cache")
    return _need(
        "model", f"{name} is neither a folder nor in the hub's cache", "missing", "a run loads it from the hub"
    )


def _room(config: Config) -> Iterator[Finding]:
    """Whether a run fits into the memory here by its plan, where the model's sizes are known without the hub."""
    import torch

    if config.policy.device.startswith("cuda") and not torch.cuda.is_available():
        yield _need("device", "no GPU was found", "missing", f"policy.device={config.policy.device} asks for one")
        return
    if not is_at_hand(config.model):
        return
    try:
        plan = make_plan(config, device_of(config))
    except ModelError as error:
        yield _need("memory", "cannot be planned", "optional", str(error))
        return
    peak = min(memory.peak for memory in plan.memory.values())
    found = f"{peak / GIB:.1f} of {plan.device.memory / GIB:.0f} GiB, by `luffy plan`"
    yield _need("memory", found, _state(plan.ok), "" if plan.ok else how_it_fits(plan))


def _data(config: Config) -> Finding:
    from luffy.config import MINIATURE
    from luffy.data import check_data_name
    from luffy.data.readers import is_hub_name

    name = config.data.train
    if name == MINIATURE:
        return _need("data", "the built-in task")
    if is_hub_name(name):
        have = find_spec("datasets") is not None
        return _need("data", f"{name}, from the hub", _state(have), "" if have else DATA_EXTRA)
    try:
        check_data_name(name)
    except LuffyError as error:
        return _need("data", f"there is no {name}", "missing", f"{error} The head of the recipe says how to make it")
    return _need("data", f"{name}, a file")


def _verifier(config: Config) -> Finding:
    from luffy.reward import resolve_verifier

    kind = config.reward.kind
    if kind.startswith("python:"):  # to look at a recipe must not run the code that it names
        return _need("verifier", f"{kind}, your own; not tried here")
    try:
        resolve_verifier(kind)
    except LuffyError as error:
        return _need("verifier", kind, "missing", str(error))
    if kind == "reasoning_gym" and find_spec("reasoning_gym") is None:
        remedy = "pip install 'luffy-rl[reasoning-gym]'"
        return _need("verifier", "reasoning_gym is not installed", "missing", remedy)
    return _need("verifier", kind)


def _state(good: bool) -> str:
    return "fine" if good else "missing"
