"""A comparison as one picture: accuracy, entropy and the advantage of the traces, side by side, on white."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from luffy.comparison.claims import Role, set_roles
from luffy.comparison.collect import Comparison, read_comparison
from luffy.errors import RunError
from luffy.files import write_whole
from luffy.report.charts import Reach, axis_format, y_scale
from luffy.report.curves import Curve, accuracy_curves, training_curves
from luffy.report.palette import Look, looks

PANELS = ("Entropy", "Advantage of the traces")  # beside the accuracy, those of them that were measured
WIDTH, HEIGHT = 330, 250
TEXT = "#1f2937"


def write_picture(comparison_folder: Path, output: Path) -> Path:
    """Write the picture of a comparison as PNG; return its path. Raises RunError where there is nothing to draw."""
    comparison = read_comparison(comparison_folder)
    panels = _panels(comparison)
    if not panels:
        raise RunError(f"{comparison_folder}: no curves to draw; the runs hold neither evaluations nor metrics.")
    methods = looks(comparison.methods)
    last_step = Reach.of(panels).steps
    figure = alt.hconcat(*(_panel(curve, methods, last_step) for curve in panels), spacing=26)
    image = vl_convert.vegalite_to_png(json.dumps(_themed(figure).to_dict()), scale=2)
    return write_whole(output, image)


def _panels(comparison: Comparison) -> list[Curve]:
    """Accuracy on the target set, where it was watched, and the other panels."""
    roles = set_roles(comparison.sets, comparison.runs[0].config)
    targets = {f"Accuracy on {name.rpartition('/')[2]}" for name, role in roles.items() if role is Role.TARGET}
    accuracy = [curve for curve in accuracy_curves(comparison) if curve.title in targets][:1]
    others = {curve.title: curve for curve in training_curves(comparison)}
    return accuracy + [others[title] for title in PANELS if title in others]


def _panel(curve: Curve, methods: dict[str, Look], last_step: float) -> Any:
    titles = [look.title for look in methods.values()]
    legend = alt.Legend(
        title=None, symbolOpacity=1, orient="bottom", direction="horizontal", columns=len(titles), symbolType="stroke"
    )
    scale = alt.Scale(domain=titles, range=[look.light for look in methods.values()])
    dashes = alt.Scale(domain=titles, range=[list(look.dash) or [1, 0] for look in methods.values()])
    color = alt.Color("m:N", scale=scale, legend=legend)
    points = [point | {"m": methods[point["m"]].title} for point in curve.points]
    x = alt.X("s:Q", title="step", axis=alt.Axis(tickCount=5), scale=alt.Scale(nice=False, domain=[0, last_step]))
    axis = alt.Axis(format=axis_format(curve), tickCount=5, minExtent=46)
    y = {"title": None, "scale": y_scale(curve), "axis": axis}
    drawn = alt.Chart(alt.Data(values=points))
    band = drawn.mark_area(opacity=0.16).encode(x=x, y=alt.Y("l:Q", **y), y2="h:Q", color=color)
    line = drawn.mark_line(strokeWidth=2.6).encode(
        x=x,
        y=alt.Y("v:Q", **y),
        color=color,
        strokeDash=alt.StrokeDash("m:N", scale=dashes, legend=legend),
    )
    layers = [band, line] if curve.has_band else [line]
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=curve.title)


def _themed(figure: Any) -> Any:
    return (
        figure.configure(background="white", padding=14, font="Helvetica, Arial, sans-serif")
        .configure_view(stroke=None)
        .configure_axis(
            labelFontSize=14,
            titleFontSize=14,
            titleFontWeight="normal",
            labelColor=TEXT,
            titleColor=TEXT,
            gridColor="#e5e7eb",
            domainColor="#9ca3af",
            tickColor="#9ca3af",
        )
        .configure_title(fontSize=18, fontWeight=600, color=TEXT, anchor="start", offset=12)
        .configure_legend(
            labelFontSize=15, symbolSize=500, symbolStrokeWidth=3, labelColor=TEXT, offset=16, labelLimit=300
        )
    )
