"""Curves as Vega-Lite specifications.

Colours are placeholders, `@` and the place of the method, or `@ink` and the like, which the page replaces by those of
the reader's light or dark theme, and the picture by those on white. Each specification has the parameters `axis`
("step" or "tokens"), `window` (the range shown, for zooming all charts at once) and `shown` (the methods switched on).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from luffy.report.curves import TIMES, Curve, Point
from luffy.report.palette import Look

HEIGHT = 190
PARTS = {"generate": "#3b78b5", "verify": "#8fb8de", "update": "#d98032", "synchronise": "#f0c08a", "other": "#9a9a9a"}


@dataclass(frozen=True, slots=True)
class Reach:
    """Where the horizontal axes of all charts end, so that they can be read down the page."""

    steps: float
    tokens: float

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> Reach:
        """The largest step and number of tokens of any point."""
        steps, tokens = (max((point[key] for curve in curves for point in curve.points), default=1) for key in "st")
        return cls(math.ceil(steps), tokens)


def curve_chart(curve: Curve, methods: Mapping[str, Look], reach: Reach) -> Any:
    """One line a method, with its band. methods: all those of the page, so that colours agree."""
    names = list(methods)
    scale = alt.Scale(domain=names, range=[f"@{place}" for place in range(len(names))])
    dashes = alt.Scale(domain=names, range=[list(look.dash) or [1, 0] for look in methods.values()])
    end = f"axis === 'tokens' ? {reach.tokens} : {reach.steps}"
    x = alt.X(
        "x:Q",
        title=None,
        scale=alt.Scale(nice=False, domainMin=0, domainMax={"expr": end}, domainRaw={"expr": "window"}),
        axis=alt.Axis(format="~s", tickCount=5),
    )
    y = {"title": None, "scale": y_scale(curve), "axis": alt.Axis(format=axis_format(curve), tickCount=5)}
    color = alt.Color("m:N", scale=scale, legend=None)
    drawn = (
        alt.Chart(alt.Data(values=curve.points))
        .transform_calculate(x="axis === 'tokens' ? datum.t : datum.s")
        .transform_filter("indexof(shown, datum.m) >= 0")
    )
    band = drawn.mark_area(opacity=0.17, clip=True, tooltip=None).encode(
        x=x, y=alt.Y("l:Q", **y), y2="h:Q", color=color
    )
    line = drawn.mark_line(strokeWidth=2, clip=True, tooltip=None).encode(
        x=x, y=alt.Y("v:Q", **y), color=color, strokeDash=alt.StrokeDash("m:N", scale=dashes, legend=None)
    )
    precise = ".1%" if curve.unit == "share" else ".4~g"
    tooltip = [
        alt.Tooltip("m:N", title="method"),
        alt.Tooltip("s:Q", title="step"),
        alt.Tooltip("t:Q", title="tokens", format=",d"),
        alt.Tooltip("v:Q", title=curve.title, format=precise),
        alt.Tooltip("l:Q", title="low", format=precise),
        alt.Tooltip("h:Q", title="high", format=precise),
    ]
    dots = drawn.mark_circle(size=90, opacity=0, clip=True).encode(x=x, y=alt.Y("v:Q", **y), tooltip=tooltip)
    layers = [band, line, dots] if curve.has_band else [line, dots]
    parameters = (
        alt.param(name="axis", value="step"),
        alt.param(name="window", value=None),
        alt.param(name="shown", value=names),
    )
    return (
        alt.layer(*layers)
        .add_params(*parameters)
        .properties(width="container", height=HEIGHT, description=f"{curve.title}. {curve.explanation}")
    )


def y_scale(curve: Curve) -> Any:
    """The vertical scale of a curve: all of 0 to 100 %, or from zero to a round number."""
    return alt.Scale(domain=[0, 1]) if curve.whole else alt.Scale(zero=True, nice=5)


def axis_format(curve: Curve) -> str:
    """The d3 format of a curve's axis: percent, plain numbers, or 12k."""
    largest = max(point["v"] for point in curve.points)
    if curve.unit == "share":
        return ".0%" if largest > 0.05 else ".1%"
    return "~s" if largest >= 1000 else "~e" if largest < 0.001 else "~f"


def time_chart(points: Sequence[Point], methods: Mapping[str, Look]) -> Any:
    """Seconds a step of each method, by part."""
    titled = [
        point | {"m": methods[point["m"]].title, "order": [*TIMES, "other"].index(point["part"])} for point in points
    ]
    present = [part for part in PARTS if any(point["part"] == part for point in points)]
    return (
        alt.Chart(alt.Data(values=titled))
        .mark_bar(height=16)
        .encode(
            x=alt.X("v:Q", title="seconds a step", axis=alt.Axis(tickCount=6)),
            y=alt.Y("m:N", title=None, sort=[look.title for look in methods.values()]),
            color=alt.Color(
                "part:N",
                scale=alt.Scale(domain=present, range=[PARTS[part] for part in present]),
                legend=alt.Legend(title=None, orient="top"),
            ),
            order=alt.Order("order:Q"),
            tooltip=[alt.Tooltip("m:N", title="method"), "part:N", alt.Tooltip("v:Q", title="seconds", format=".3~g")],
        )
        .properties(width="container", height=26 * len(methods), description="Seconds a step by part, for each method.")
    )


def weight_chart(table: Mapping[str, Any]) -> Any:
    """What a trace token's advantage is multiplied by, against its probability: the plain ratio and the shaped one."""
    names = {"plain": "plain ratio", "shaped": "with policy shaping"}
    points = [
        {"p": float(f"{ratio:.4g}"), "w": weight, "f": title}
        for name, title in names.items()
        for row, weight in enumerate(table[name])
        if (ratio := math.exp(-table["first"] - table["step"] * row)) < 1 + 1e-9
    ]
    color = alt.Color(
        "f:N",
        scale=alt.Scale(domain=list(names.values()), range=["@muted", "@weight-ink"]),
        legend=alt.Legend(title=None, orient="top", symbolType="stroke"),
    )
    lines = (
        alt.Chart(alt.Data(values=points))
        .mark_line(strokeWidth=2.5, clip=True)
        .encode(
            x=alt.X(
                "p:Q",
                title="probability of the token",
                scale=alt.Scale(domain=[0, 1]),
                axis=alt.Axis(format=".0%", tickCount=5),
            ),
            y=alt.Y("w:Q", title="weight", axis=alt.Axis(tickCount=5)),
            color=color,
            order="p:Q",
            tooltip=["f:N", alt.Tooltip("p:Q", format=".1%", title="probability"), alt.Tooltip("w:Q", title="weight")],
        )
    )
    layers = [lines]
    if table["even"] is not None:
        even = alt.Chart(alt.Data(values=[{"p": table["even"]}])).mark_rule(strokeDash=[3, 3], color="@muted")
        layers.append(even.encode(x="p:Q"))
    description = "Weight of a trace token against its probability, for the plain ratio and with policy shaping."
    return alt.layer(*layers).properties(width="container", height=HEIGHT, description=description)


def learned_chart() -> Any:
    """Steps by tokens of a trace, coloured by probability. The page puts `{"s", "k", "t", "p"}` cells into it."""
    x = alt.X("k:O", title=None, axis=alt.Axis(labels=False, ticks=False, domain=False))
    return (
        alt.Chart(alt.Data(values=[]))
        .mark_rect()
        .encode(
            x=x,
            y=alt.Y("s:O", title="step", sort="ascending", axis=alt.Axis(labelOverlap=True, domain=False)),
            color=alt.Color(
                "p:Q",
                scale=alt.Scale(domain=[0, 1], range=["@page", "@weight-ink"], interpolate="rgb"),
                legend=alt.Legend(title=None, format=".0%", orient="top", gradientLength=160, tickCount=3),
            ),
            tooltip=[
                alt.Tooltip("s:O", title="step"),
                alt.Tooltip("t:N", title="token"),
                alt.Tooltip("p:Q", title="probability", format=".1%"),
            ],
        )
        .properties(width="container", height=HEIGHT)
    )
