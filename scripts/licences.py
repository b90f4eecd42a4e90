"""The licences of everything that is installed with luffy-rl, from the packages' own metadata.

    python scripts/licences.py                        check; exit status 1 if one is not permissive and not listed below
    python scripts/licences.py --write docs/licences.md

Followed are the requirements of this project and of its extras, as far as they are installed here.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
PERMISSIVE = re.compile(
    r"\b(MIT|BSD|0BSD|BSL-1\.0|Apache|ISC|ISCL|PSF|Python Software Foundation|CNRI|Zlib|CC0|Unlicense|HPND)\b",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"\b(A?GPL|LGPL|MPL|EUPL|CDDL|SSPL|Mozilla|GNU|Proprietary|NVIDIA|Commercial)", re.IGNORECASE)
ACCEPTED = {  # not permissive, or not said in the metadata: why it may be used all the same
    "pebble": "LGPL-3.0: imported unchanged as a library, which it allows under any licence",
    "certifi": "MPL-2.0: a list of certificates, unchanged",
    "tqdm": "MPL-2.0 and MIT: unchanged",
    "pathspec": "MPL-2.0: unchanged, for development alone",
    "hypothesis": "MPL-2.0: unchanged, for tests alone",
    "zss": "BSD-3-Clause by its licence file; the metadata do not say",
}
ACCEPTED_PREFIXES = {
    "nvidia-": "NVIDIA's terms: the runtime of torch's builds for GPUs; none in the build for processors"
}


@dataclass(slots=True)
class Package:
    """A package, its licence, and which of this project's sets need it."""

    name: str
    licence: str
    needed_by: set[str] = field(default_factory=set)

    @property
    def accepted(self) -> str | None:
        """Why it may be used although it is not permissive; None: no reason is listed."""
        prefixed = (why for prefix, why in ACCEPTED_PREFIXES.items() if self.name.startswith(prefix))
        return ACCEPTED.get(self.name) or next(prefixed, None)

    @property
    def permissive(self) -> bool:
        """Whether the licence is known to be permissive."""
        return is_permissive(self.licence)


def is_permissive(licence: str) -> bool:
    """Whether a licence text, or an expression of several, names permissive ones alone."""
    return bool(PERMISSIVE.search(licence)) and not COPYLEFT.search(licence)


def licence_of(found: Distribution) -> str:
    """The licence as the metadata say: the expression, else the classifiers, else the first line of the text."""
    metadata = found.metadata
    classifiers = [line.split(" :: ")[-1] for line in metadata.get_all("Classifier") or () if "License ::" in line]
    expression = _first(metadata.get_all("License-Expression"))
    said = expression or "; ".join(one for one in classifiers if one != "OSI Approved")
    return said or _first(metadata.get_all("License")).split("\n")[0][:60] or "not said"


def _first(values: list[str] | None) -> str:
    return values[0].strip() if values else ""


def find_packages() -> dict[str, Package]:
    """Everything that this project and its extras bring, by name."""
    packages: dict[str, Package] = {}
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    for needed_by, lines in {"always": project["dependencies"], **project["optional-dependencies"]}.items():
        seen: set[str] = set()
        for requirement in map(Requirement, lines):
            _follow(requirement.name, requirement.extras | {""}, needed_by, packages, seen)
    return dict(sorted(packages.items()))


def _follow(name: str, extras: set[str], needed_by: str, packages: dict[str, Package], seen: set[str]) -> None:
    """Enter a package and what it requires."""
    key = name.lower().replace("_", "-")
    visit = f"{key}[{','.join(sorted(extras))}]"
    if visit in seen:
        return
    seen.add(visit)
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return  # for another system, or an extra that is not installed
    packages.setdefault(key, Package(key, licence_of(found))).needed_by.add(needed_by)
    for requirement in _required(found, extras):
        _follow(requirement.name, requirement.extras | {""}, needed_by, packages, seen)


def _required(found: Distribution, extras: set[str]) -> Iterator[Requirement]:
    for line in found.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def page(packages: dict[str, Package]) -> str:
    """docs/licences.md."""
    rows = [
        f"| {one.name} | {one.licence}{f' ({one.accepted})' if one.accepted and not one.permissive else ''} "
        f"| {'always' if 'always' in one.needed_by else ', '.join(sorted(one.needed_by))} |"
        for one in packages.values()
    ]
    head = (
        "# Licences of what luffy-rl uses\n\nluffy-rl itself: Apache-2.0. Nothing below is part of it; pip installs it "
        "beside it. Written by\n`python scripts/licences.py --write docs/licences.md` from the packages' own metadata; "
        "`make licences` fails\non one that is not permissive and not explained here.\n"
    )
    return "\n".join([head, "| package | licence | needed |", "|---|---|---|", *rows, ""])


def main() -> int:
    """Check, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the page")
    path: Path | None = parser.parse_args().write
    packages = find_packages()
    if path:
        path.write_text(page(packages), encoding="utf-8")
    refused = [one for one in packages.values() if not one.permissive and not one.accepted]
    for one in refused:
        print(f"{one.name}: {one.licence}, needed by {', '.join(sorted(one.needed_by))}", file=sys.stderr)
    print(f"{len(packages)} packages, {len(refused)} with a licence that is not permissive and not explained.")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
