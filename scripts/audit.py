"""Known vulnerabilities in the versions of constraints.txt, by pip-audit; it needs a service on the network.

Exit status 0: audited, nothing known. 1: something is known. 3: not audited, since no service was reachable.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
SERVICES = ("pypi", "osv")
CLEAN, VULNERABLE, NOT_AUDITED = 0, 1, 3
PATIENCE = 300  # seconds for one service

Run = Callable[[Sequence[str]], tuple[str, str]]  # a command -> its stdout and stderr


def run(command: Sequence[str]) -> tuple[str, str]:
    """Run a command to its end. Returns what it wrote; a service that does not answer is no different from none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return "", f"no answer within {PATIENCE} s"
    return done.stdout, done.stderr


def audit(run: Run = run) -> tuple[int, list[str]]:
    """(exit status, lines to print), by the first service that answers."""
    reasons = []
    for service in SERVICES:
        options = ["--requirement", str(CONSTRAINTS), "--no-deps", "--disable-pip", "--format", "json"]
        command = [sys.executable, "-m", "pip_audit", *options, "--progress-spinner", "off"]
        stdout, stderr = run([*command, "--vulnerability-service", service])
        try:
            packages = json.loads(stdout)["dependencies"]
        except (ValueError, KeyError, TypeError):
            reasons.append(f"{service}: {(stderr.strip().splitlines() or ['no answer'])[-1]}")
            continue
        known = [(one, found) for one in packages for found in one.get("vulns", ())]
        lines = [f"{one['name']} {one['version']}: {found['id']}, mended in {_mended(found)}" for one, found in known]
        skipped = [f"{one['name']}: not audited ({one['skip_reason']})" for one in packages if "skip_reason" in one]
        summary = f"{len(packages) - len(skipped)} packages audited by {service}, {len(known)} known vulnerabilities."
        return (VULNERABLE if known else CLEAN), [*lines, *skipped, summary]
    return NOT_AUDITED, ["NOT AUDITED: no vulnerability service answered.", *reasons]


def _mended(found: dict[str, list[str]]) -> str:
    return ", ".join(found.get("fix_versions") or ()) or "no version yet"


def main() -> int:
    """Print what was found."""
    status, lines = audit()
    print("\n".join(lines))
    return status


if __name__ == "__main__":
    sys.exit(main())
