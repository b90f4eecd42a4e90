"""The pictures of docs/report.md, taken of a report in Chromium; with --all every section at every size, to look at.

    python scripts/report_pictures.py runs/pictures/report.html docs/report

docs/report.md has the command that trains what they show.
"""

from __future__ import annotations

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

SIZES = {"phone": (390, 844), "middle": (900, 1000), "large": (1600, 1000)}  # CSS pixels, width and height
SCHEMES = ("light", "dark")
PLACES = {  # section -> what is scrolled to the top
    "summary": "body",
    "curves": "#curves",
    "dynamics": "#dynamics",
    "learned": "#learned-title",
    "history": "#history-title",
    "groups": "[data-mode=weight]",
    "group": "#group",
    "cost": "#cost",
}
KEPT = (
    "summary-large-light", "summary-middle-dark", "summary-phone-light",
    "curves-large-light", "curves-phone-dark", "dynamics-middle-dark", "learned-large-light",
    "groups-large-light", "groups-middle-dark", "group-phone-light",
)  # fmt: skip
MARGIN = 30  # pixels above what is scrolled to


def take(browser: Any, report: Path, folder: Path, size: str, scheme: str, everything: bool) -> None:
    """Take the pictures of one size and scheme."""
    width, height = SIZES[size]
    page = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
        is_mobile=size == "phone",
        has_touch=size == "phone",
    )
    page.goto(report.resolve().as_uri())
    page.click("[data-mode=weight]")
    page.select_option("[name=step]", "20")
    page.select_option("[name=outcome]", "mixed")
    page.mouse.move(0, 0)  # nothing is pointed at
    for section, selector in PLACES.items():
        name = f"{section}-{size}-{scheme}"
        if not everything and name not in KEPT:
            continue
        for _ in range(2):  # charts that are drawn on the way move what is below them
            page.evaluate(
                "([selector, margin]) => scrollTo(0, document.querySelector(selector).getBoundingClientRect().top"
                " + scrollY - margin)",
                [selector, 0 if selector == "body" else MARGIN],
            )
            page.wait_for_timeout(700)
        shrink(page.screenshot(), folder / f"{name}.png")
    page.close()


def shrink(png: bytes, path: Path) -> None:
    """Write a picture with 256 colours, which takes a third of the bytes and looks the same."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--all", action="store_true", help="not only those that docs/report.md shows")
    given = parser.parse_args()
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    given.folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for size in SIZES:
            for scheme in SCHEMES:
                take(browser, given.report, given.folder, size, scheme, given.all)
        browser.close()


if __name__ == "__main__":
    main()
