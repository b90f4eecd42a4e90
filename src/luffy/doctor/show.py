"""The findings as a table that fits on a screen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Column, Table

from luffy.doctor.findings import Finding
from luffy.redaction import printable

MARKS = {"fine": "[green]ok[/]", "optional": "[yellow]-[/]", "missing": "[red]missing[/]"}


def findings_table(findings: Sequence[Finding]) -> Table:
    """A line a finding, under the name of its area; libraries that are in order share one."""
    headings = ("", "", "found", "needed for, or what to do")
    table = Table(*(Column(heading, overflow="fold") for heading in headings), box=SIMPLE)  # names are told apart whole
    for area, group in groupby(fold_libraries(findings), lambda one: one.area):
        table.add_row("", f"[bold]{area}[/]", "", "")
        for one in group:
            table.add_row(MARKS[one.state], *map(_shown, (one.name, one.found, one.remedy)))
    return table


def fold_libraries(findings: Sequence[Finding]) -> list[Finding]:
    """The findings with one in the place of all libraries that are as needed and as tested."""
    in_order = [one for one in findings if one.area == "libraries" and one.state == "fine" and not one.remedy]
    versions = ", ".join(f"{one.name} {one.found}" for one in in_order)
    folded = [Finding("libraries", f"{len(in_order)} in order", versions)] if in_order else []
    place = findings.index(in_order[0]) if in_order else 0
    others = [one for one in findings if one not in in_order]
    return [*others[:place], *folded, *others[place:]]


def _shown(text: str) -> str:
    return escape(printable(text))
