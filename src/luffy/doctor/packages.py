"""The libraries: those that every command needs, against the oldest that will do; and those that some things need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from luffy.doctor.findings import Finding

DISTRIBUTION = "luffy-rl"


@dataclass(frozen=True, slots=True)
class Option:
    """A package that is not needed by everybody."""

    package: str
    install: str
    needed_for: str


OPTIONS = (
    Option(
        "datasets",
        "pip install 'luffy-rl[data]'",
        "data from the hub (`luffy data prepare` without --from, OWNER/NAME in data.train, public benchmarks) and "
        "folders saved by `datasets`; the recipes of GSM8K and of the paper, unless you have their files",
    ),
    Option(
        "reasoning-gym", "pip install 'luffy-rl[reasoning-gym]'", "made tasks: `luffy data prepare reasoning-gym:...`"
    ),
    Option("vllm", "pip install vllm", "rollout.engine=vllm, evaluation.engine=vllm: the fast way on a GPU"),
    Option("bitsandbytes", "pip install 'luffy-rl[qlora]'", "adapter.quantize"),
    Option("deepspeed", "pip install 'luffy-rl[deepspeed]'", "parallel.sharding=zero1, zero2 or zero3"),
    Option("tensorboard", "pip install 'luffy-rl[tensorboard]'", "tracker=tensorboard"),
    Option("wandb", "pip install wandb", "tracker=wandb"),
    Option("trackio", "pip install trackio", "tracker=trackio"),
    Option("mlflow", "pip install mlflow", "tracker=mlflow"),
    Option("trl", "pip install 'luffy-rl[bench]'", "`make bench`, the comparison of speed"),
)


def find_libraries() -> Iterator[Finding]:
    """Each library that is always needed: its version, the oldest that will do, the one that was tested."""
    tested = constraint_versions()
    for requirement in base_requirements():
        yield check_library(requirement, installed(requirement.name), tested.get(_key(requirement.name)))


def find_options() -> Iterator[Finding]:
    """Each library that some things need, and which."""
    for option in OPTIONS:
        have = installed(option.package)
        state, remedy = ("fine", "") if have else ("optional", f"{option.install}; for {option.needed_for}")
        yield Finding("options", option.package, have or "not installed", state, remedy)  # type: ignore[arg-type]


def check_library(requirement: Requirement, have: str | None, tested: str | None) -> Finding:
    """have: the version that is installed, if any. tested: the one that this project's tests ran with, if known."""
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    if have is None:
        return Finding("libraries", requirement.name, "not installed", "missing", install)
    try:
        too_old = not requirement.specifier.contains(Version(have), prereleases=True)
    except InvalidVersion:
        return Finding("libraries", requirement.name, have, remedy=f"needed: {requirement.specifier}")
    if too_old:
        return Finding("libraries", requirement.name, have, "missing", f"needed: {requirement.specifier}. {install}")
    other = tested is not None and Version(tested) != Version(Version(have).public)
    return Finding("libraries", requirement.name, have, remedy=f"tested with {tested}" if other else "")


def base_requirements() -> list[Requirement]:
    """What is needed without any extra, as the package's own metadata say."""
    parsed = [Requirement(line) for line in requires(DISTRIBUTION) or ()]
    return [one for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]


def constraint_versions() -> Mapping[str, str]:
    """The versions in constraints.txt, by name; empty where the file is not."""
    package = Path(str(resources.files("luffy")))
    places = (package / "assets" / "constraints.txt", package.parents[1] / "constraints.txt")  # installed; a checkout
    file = next((path for path in places if path.is_file()), None)
    if file is None:
        return {}
    pairs = (line.split("==") for line in file.read_text(encoding="utf-8").splitlines() if "==" in line)
    return {_key(name): number.strip() for name, number in pairs}


def installed(package: str) -> str | None:
    """The version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _key(name: str) -> str:
    return name.lower().replace("_", "-")
