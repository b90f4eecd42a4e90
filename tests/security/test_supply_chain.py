"""The scripts that look at dependencies: their licences, and what is known against their versions."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import audit  # noqa: E402
import licences  # noqa: E402


@pytest.mark.parametrize(
    "licence",
    ["MIT", "BSD-3-Clause", "Apache Software License", "Apache-2.0 OR BSD-2-Clause", "ISC License (ISCL)", "PSF-2.0",
     "Python Software Foundation License", "BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", "MIT-CMU"],
)  # fmt: skip
def test_permissive(licence):
    assert licences.is_permissive(licence)


@pytest.mark.parametrize(
    "licence",
    ["GPL-3.0-only", "GNU General Public License v2 (GPLv2)", "AGPL-3.0", "LGPL", "MPL-2.0 AND MIT", "not said", "",
     "Mozilla Public License 2.0 (MPL 2.0)", "Other/Proprietary License", "Apache-2.0 AND GPL-2.0"],
)  # fmt: skip
def test_not_permissive(licence):
    assert not licences.is_permissive(licence)


def test_every_licence_here_is_permissive_or_explained():
    packages = licences.find_packages()
    assert {"torch", "transformers", "pebble", "numpy"} <= packages.keys()
    assert len(packages) > 30
    assert [one for one in packages.values() if not one.permissive and not one.accepted] == []
    assert "always" in packages["torch"].needed_by
    assert packages["ruff"].needed_by == {"dev"}


def test_the_page_names_what_is_always_needed():
    written = (ROOT / "docs/licences.md").read_text()
    always = [name for name, one in licences.find_packages().items() if "always" in one.needed_by]
    missing = [name for name in always if f"| {name} |" not in written]
    assert [name for name in missing if not name.startswith(("nvidia-", "triton", "cuda"))] == []  # builds for GPUs


def answer(*packages):
    return json.dumps({"dependencies": list(packages), "fixes": []}), ""


CLEAN = {"name": "torch", "version": "2.13.0", "vulns": []}
BAD = {"name": "jinja2", "version": "3.0", "vulns": [{"id": "CVE-1", "fix_versions": ["3.1"]}]}


def test_an_audit_that_finds_nothing_and_one_that_does():
    assert audit.audit(lambda command: answer(CLEAN)) == (0, ["1 packages audited by pypi, 0 known vulnerabilities."])
    status, lines = audit.audit(lambda command: answer(CLEAN, BAD))
    assert status == 1
    assert lines[0] == "jinja2 3.0: CVE-1, mended in 3.1"


def test_a_second_service_is_asked_where_the_first_does_not_answer():
    status, lines = audit.audit(lambda command: answer(CLEAN) if "osv" in command else ("", "ERROR: no route"))
    assert (status, lines) == (0, ["1 packages audited by osv, 0 known vulnerabilities."])


@pytest.mark.parametrize("said", [("", "ERROR: connection refused"), ("[]", "x"), ("", "")])
def test_without_a_service_it_is_said_that_nothing_was_audited(said):
    status, lines = audit.audit(lambda command: said)
    assert status == 3
    assert lines[0] == "NOT AUDITED: no vulnerability service answered."
