"""Points of curves, colours of methods, and the picture."""

import json
import struct
import subprocess
import sys

import pytest
from synthetic import write_run, write_runs

from luffy.comparison.collect import group_runs, read_comparison, read_run
from luffy.errors import RunError
from luffy.report import write_picture
from luffy.report.curves import accuracy_curves, time_parts, training_curves
from luffy.report.palette import looks


def hand_made(folder, seed, values, **more):
    folder.mkdir()
    lines = [
        {"step": step, "policy/entropy": value, "tokens/trained": 10 * step, "tokens/generated": 5 * step} | more
        for step, value in enumerate(values, 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_run(folder, method="luffy", seed=seed)


def entropy(comparison):
    return next(curve for curve in training_curves(comparison) if curve.title == "Entropy").points


def test_a_point_is_the_mean_of_the_seeds_with_their_range(tmp_path):
    runs = [hand_made(tmp_path / "a", 0, [1.0, 2.0]), hand_made(tmp_path / "b", 1, [3.0, 2.5])]
    assert entropy(group_runs(runs)) == [
        {"m": "luffy", "s": 1.0, "t": 15, "v": 2.0, "l": 1.0, "h": 3.0},
        {"m": "luffy", "s": 2.0, "t": 30, "v": 2.25, "l": 2.0, "h": 2.5},
    ]


def test_long_series_are_averaged_not_thinned(tmp_path):
    points = entropy(group_runs([hand_made(tmp_path / "a", 0, [0.0, 1.0] * 60)]))
    assert len(points) == 60
    assert {point["v"] for point in points} == {0.5}
    assert points[0] == {"m": "luffy", "s": 1.5, "t": 22, "v": 0.5}


def test_a_metric_that_nobody_measured_has_no_chart(tmp_path):
    run = hand_made(tmp_path / "a", 0, [1.0])
    assert [curve.title for curve in training_curves(group_runs([run]))] == ["Entropy"]


def test_the_parts_of_a_step_add_up(tmp_path):
    more = {"time/step": 1.0, "time/generate": 0.5, "time/update": 0.3}
    parts = time_parts(group_runs([hand_made(tmp_path / "a", 0, [1.0, 1.0], **more)]))
    assert {point["part"]: point["v"] for point in parts} == {
        "generate": 0.5,
        "update": 0.3,
        "other": pytest.approx(0.2),
    }


def test_accuracy_has_intervals_and_starts_at_the_base(tmp_path):
    write_runs(tmp_path, ("luffy",), seeds=2, problems=30, steps=20)
    (curve,) = accuracy_curves(read_comparison(tmp_path))
    assert curve.title == "Accuracy on hard"
    assert [point["s"] for point in curve.points] == [0, 10, 20]
    assert all(point["l"] <= point["v"] <= point["h"] for point in curve.points)


def test_a_mean_is_not_bent_by_seeds_that_are_not_measured_there(tmp_path):
    write_run(tmp_path / "luffy" / "seed-0", "luffy", 0, steps=20, problems=10, every=5)
    write_run(tmp_path / "luffy" / "seed-1", "luffy", 1, steps=20, problems=10, every=10)
    (curve,) = accuracy_curves(read_comparison(tmp_path))
    assert [point["s"] for point in curve.points] == [0, 10, 20]


def test_methods_keep_their_look_and_strangers_get_a_free_one():
    alone, together = looks(["luffy"]), looks(["luffy", "sft", "mine"])
    assert alone["luffy"] == together["luffy"]
    assert len({look.light for look in together.values()}) == 3
    assert list(looks(["luffy", "on_policy", "sft_rl"])) == ["on_policy", "sft_rl", "luffy"]


def test_the_picture_is_a_wide_png(tmp_path):
    write_runs(tmp_path / "c", ("luffy", "sft"), seeds=2, problems=20, steps=20, rollouts=False)
    content = write_picture(tmp_path / "c", tmp_path / "out" / "picture.png").read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", content[16:24])
    assert 1800 < width < 3200
    assert width > 2 * height


def test_no_picture_of_nothing(tmp_path):
    folder = tmp_path / "c" / "luffy" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("config: {}\n")
    with pytest.raises(RunError, match="no curves to draw"):
        write_picture(tmp_path / "c", tmp_path / "picture.png")


def test_a_report_needs_no_torch():
    program = "import sys, luffy.report; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
