"""The page: runs in, one self-contained HTML file out.

Nothing on it is loaded from anywhere: the chart library is in the page, and a content security policy of hashes lets
nothing else run or load, whatever a model may have written. Texts reach the page through jinja2's autoescaping, or as
JSON that the page's script writes into text nodes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import vl_convert
from markupsafe import Markup

from luffy.comparison.claims import Role, set_roles
from luffy.comparison.collect import Comparison, group_runs, is_run, read_comparison, read_run
from luffy.comparison.verdicts import compare_runs
from luffy.errors import RunError
from luffy.files import taken_as_written, write_whole
from luffy.report import tables
from luffy.report.charts import Reach, curve_chart, learned_chart, time_chart, weight_chart
from luffy.report.cost import cost_fact, cost_table
from luffy.report.curves import Curve, accuracy_curves, style_curves, time_parts, training_curves
from luffy.report.dynamics import dynamics_curves, forgetting_table, learned_traces
from luffy.report.embed import embedded_size, json_for_script
from luffy.report.groups import sample_groups
from luffy.report.histories import histories
from luffy.report.palette import Look, looks
from luffy.report.warnings import warnings
from luffy.report.weights import trace_roles, weight_table

MOST_BYTES = 4_600_000  # of library and data together: with tables and settings, a page stays under 5 MB
LEAST_FOR_GROUPS = 300_000  # bytes
SCRIPTS = ("base.js", "charts.js", "groups.js", "dynamics.js", "live.js")  # one script on the page, in this order


def write_report(folders: Sequence[Path], output: Path, *, price: float | None = None) -> Path:
    """Write one HTML page about a run, several runs, or a comparison; return its path.

    folders: run folders, or a folder with METHOD/seed-K in it. price: dollars a device and hour. Raises RunError where
    a folder is neither, a file in it is broken, or the page cannot be written.
    """
    return write_whole(output, page_of(folders, price=price))


def page_of(folders: Sequence[Path], *, price: float | None = None, live: str | None = None) -> bytes:
    """The HTML of the page about these folders; see `render`. Raises RunError as `write_report` does."""
    with taken_as_written(", ".join(map(str, folders))):  # where no single file can be named
        page = render(read_folders(folders), price=price, live=live)
    return page.encode(errors="backslashreplace")  # half a surrogate pair in a text has no bytes of its own


def render(comparison: Comparison, *, price: float | None = None, live: str | None = None) -> str:
    """The HTML of the page.

    price: dollars a device and hour; without it there is no money on the page.
    live: the version of what it shows; it then asks the server it came from whether there is another one.
    """
    methods = looks(comparison.methods)
    content = compare_runs(comparison)
    curves = [*accuracy_curves(comparison), *training_curves(comparison), *style_curves(comparison)]
    moving = dynamics_curves(comparison)
    values = _values(comparison, methods, [*curves, *moving]) | {"live": live}
    shown = {
        "live": live is not None,
        "curves": list(enumerate(curves)),
        "moving": list(enumerate(moving, len(curves))),
        "has_times": values["times"] is not None,
        "has_groups": bool(values["groups"]),
        "has_histories": bool(values["histories"]),
        "has_traces": bool(values["traces"]),
    }
    return _fill(_context(comparison, methods, content, price) | shown, values)


def _values(comparison: Comparison, methods: Mapping[str, Look], curves: Sequence[Curve]) -> dict[str, Any]:
    """What the page's script works with."""
    reach = Reach.of(curves)
    times = time_parts(comparison)
    roles, weights = trace_roles(comparison), weight_table(comparison)
    found = {
        "methods": [
            {"name": name, "title": look.title, "dash": look.dash, "role": roles[name]}
            for name, look in methods.items()
        ],
        "histories": histories(comparison),
        "traces": learned_traces(comparison),
        "weights": weights,
        "charts": [curve_chart(curve, methods, reach).to_dict() for curve in curves],
        "times": time_chart(times, methods).to_dict() if times else None,
        "weight": weight_chart(weights).to_dict(),
        "learned": learned_chart().to_dict(),
    }
    left = MOST_BYTES - len(_library().encode()) - embedded_size(found)
    return found | {"groups": sample_groups(comparison, max(left, LEAST_FOR_GROUPS))}


def _context(
    comparison: Comparison, methods: Mapping[str, Look], content: Mapping[str, Any], price: float | None
) -> dict[str, Any]:
    """What the template writes by itself."""
    target = _target(comparison)
    watched = list(content["at_equal_tokens"]["evaluations"].get(next(iter(content["methods"]), ""), {}))
    return {
        "title": _title(comparison, methods),
        "facts": tables.facts(comparison, cost_fact(comparison.runs, price)),
        "price": price,
        "notes": [*content["notes"], *content["incomplete"], *warnings(comparison)],
        "verdicts": tables.verdict_rows(content["verdicts"]),
        "verdict_counts": tables.count_verdicts(content["verdicts"]),
        "unjudged": tables.unjudged_claims(content["unjudged"]),
        "sets": [(name, tables.short_name(name), roles) for name, roles in _roles(comparison).items()],
        "accuracy": tables.accuracy_table(comparison, content, methods),
        "completions": tables.completion_table(content, methods, target) if target else [],
        "target": tables.short_name(target or ""),
        "costs": cost_table(comparison, content, methods, price),
        "equal_tokens": tables.count(content["at_equal_tokens"]["tokens"]),
        "watched": [(name, tables.short_name(name)) for name in watched],
        "differing": tables.differing_settings(comparison, methods),
        "settings": tables.settings(comparison.runs[0]),
        "forgetting": forgetting_table(comparison, methods),
        "short": tables.short_name,
        "methods": methods,
        "several_seeds": max(map(len, comparison.methods.values())) > 1,
        "weights": weight_table(comparison),
    }


def read_folders(folders: Sequence[Path]) -> Comparison:
    """One comparison of everything in the folders. Raises RunError where there is no run."""
    if not folders:
        raise RunError("a report needs at least one run folder.")
    if len(folders) == 1 and not is_run(folders[0]):
        return read_comparison(folders[0])
    comparisons = [read_comparison(folder) for folder in folders if not is_run(folder)]
    single = [read_run(folder) for folder in folders if is_run(folder)]
    return group_runs([run for comparison in comparisons for run in comparison.runs] + single)


def _title(comparison: Comparison, methods: Mapping[str, Look]) -> str:
    config = comparison.runs[0].config
    trained_on = str((config.get("data") or {}).get("train") or "")
    where = f" on {Path(trained_on).name}" if trained_on else ""
    titles = [look.title for look in methods.values()]
    if len(titles) > 2 and "luffy" in methods:
        return f"LUFFY and {len(titles) - 1} rivals{where}"
    return " and ".join(titles) + where if len(titles) < 3 else f"{len(titles)} methods{where}"


def _roles(comparison: Comparison) -> dict[str, str]:
    """Each set with a word about what it is for, on the miniature."""
    words = {Role.TARGET: "as trained on", Role.TRANSFER: "out of distribution", Role.SKILL: "skill of the base"}
    roles = set_roles(comparison.sets, comparison.runs[0].config)
    return {name: words.get(role, "") if name.startswith("miniature/") else "" for name, role in roles.items()}


def _target(comparison: Comparison) -> str | None:
    roles = set_roles(comparison.sets, comparison.runs[0].config)
    return next((name for name, role in roles.items() if role is Role.TARGET), None)


def _fill(context: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """The template with texts escaped, and the scripts allowed by their hashes."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(resource), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    scripts = {"library": _library(), "script": "\n".join(resource(name) for name in SCRIPTS)}
    policy = " ".join(f"'sha256-{_digest(script)}'" for script in scripts.values())
    return environment.get_template("page.html").render(
        context,
        style=Markup(resource("style.css")),
        values=Markup(json_for_script(values)),
        script_policy=policy,
        **{name: Markup(script) for name, script in scripts.items()},
    )


def resource(name: str) -> str:
    """The text of a template, style sheet or script of the package."""
    return (files("luffy.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that loads nothing."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")).replace("</script", "<\\/script")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
