"""Verdicts on comparisons whose truth is known."""

import json
import os

import numpy as np
import pytest
from synthetic import write_run, write_runs

from luffy.comparison.claims import CLAIMS, Claim, Role, set_roles
from luffy.comparison.collect import read_comparison
from luffy.comparison.verdicts import build_comparison, write_comparison
from luffy.errors import RunError


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return build_comparison(write_runs(tmp_path_factory.mktemp("runs") / "c", problems=100))


def verdict(content, claim, name="miniature/hard"):
    found = [one for one in content["verdicts"] if one["claim"].startswith(claim) and one["set"] == name]
    assert len(found) == 1, (claim, name, len(found))
    return found[0]


@pytest.mark.parametrize(
    ("claim", "name", "expected"),
    [
        ("LUFFY beats on-policy RL", "miniature/hard", "holds"),
        ("LUFFY learns problems", "miniature/hard", "holds"),
        ("On-policy RL stays at the base", "miniature/hard", "holds"),
        ("Policy shaping learns faster", "miniature/hard", "holds"),
        ("Policy shaping keeps more entropy at the end", "training", "holds"),
        ("LUFFY beats SFT.", "miniature/hard", "holds"),
        ("LUFFY beats RL with an SFT loss", "miniature/hard", "holds"),
        ("LUFFY beats SFT then RL", "miniature/hard", "undecided"),
        ("SFT then RL beats LUFFY", "miniature/hard", "undecided"),
        ("LUFFY generalises better than SFT.", "miniature/longer", "holds"),
        ("LUFFY forgets less than SFT.", "miniature/unrelated", "holds"),
        ("The traces' advantage falls", "training", "holds"),
    ],
)
def test_verdicts_follow_the_truth(content, claim, name, expected):
    found = verdict(content, claim, name)
    assert found["verdict"] == expected
    assert found["low"] <= found["difference"] <= found["high"]
    assert found["seeds"] == 3


def test_a_claim_that_is_wrong_fails(tmp_path):
    write_runs(tmp_path, ("luffy",), seeds=3, problems=60, steps=20, accuracy={"hard": 0.5})
    write_runs(tmp_path, ("sft_rl", "on_policy"), seeds=3, problems=60, steps=20, accuracy={"hard": 0.95})
    content = build_comparison(tmp_path)
    assert verdict(content, "LUFFY beats SFT then RL")["verdict"] == "fails"
    assert verdict(content, "SFT then RL beats LUFFY")["verdict"] == "holds"
    assert verdict(content, "LUFFY beats on-policy RL")["verdict"] == "fails"
    assert verdict(content, "On-policy RL stays at the base")["verdict"] == "fails"


@pytest.mark.parametrize(
    ("side", "low", "high", "expected"),
    [
        ("above", 0.06, 0.09, "holds"),
        ("above", -0.02, 0.04, "fails"),
        ("above", 0.04, 0.06, "undecided"),
        ("below", -0.01, 0.04, "holds"),
        ("below", 0.06, 0.09, "fails"),
        ("below", 0.0, 0.05, "undecided"),
    ],
)
def test_an_interval_is_judged_by_where_it_lies(side, low, high, expected):
    assert Claim("", "", "a", "b", side=side, threshold=0.05).judge(low, high) == expected


def test_claims_appear_only_with_their_methods_and_sets(tmp_path):
    write_runs(tmp_path, ("luffy", "sft"), seeds=2, problems=20, steps=20, sets=("hard", "worked"))
    verdicts = build_comparison(tmp_path)["verdicts"]
    assert {one["method"] for one in verdicts} | {one["rival"] for one in verdicts} == {"luffy", "sft", "base", ""}
    assert {one["set"] for one in verdicts} == {"miniature/hard", "miniature/worked", "training"}


def test_outside_the_miniature_claims_are_about_every_set(tmp_path):
    write_runs(
        tmp_path,
        ("luffy", "on_policy"),
        seeds=2,
        problems=40,
        steps=20,
        sets=("aime", "amc"),
        prefix="",
        accuracy={"aime": 0.6, "amc": 0.5},
    )
    content = build_comparison(tmp_path)
    assert {one["set"] for one in content["verdicts"] if one["claim"] == "LUFFY beats on-policy RL."} == {"aime", "amc"}
    assert not [
        one for one in content["verdicts"] if one["claim"].startswith("On-policy RL stays")
    ]  # the base solves 20 %
    assert list(content["base"]) == ["aime", "amc"]


def test_one_seed_is_said_and_entropy_is_not_judged(tmp_path):
    write_runs(tmp_path, ("luffy", "mixed"), seeds=1, problems=60, steps=40)
    content = build_comparison(tmp_path)
    assert any(note.startswith("One finished seed of luffy, mixed") for note in content["notes"])
    assert not [one for one in content["verdicts"] if "entropy" in one["measure"]]
    assert [(one["claim"], one["set"], one["reason"]) for one in content["unjudged"]] == [
        (f"Policy shaping keeps more entropy {when}.", "training", "it takes two seeds of each method")
        for when in ("over the run", "at the end")
    ]
    assert verdict(content, "The traces' advantage falls", "training")["verdict"] == "holds"
    assert all(one["seeds"] == 1 for one in content["verdicts"])


def test_claims_that_cannot_be_judged_are_named_with_the_reason(tmp_path):
    folder = write_runs(tmp_path, ("luffy", "mixed", "sft"), seeds=2, problems=20, steps=20, every=5)
    everything = build_comparison(folder)
    assert everything["unjudged"] == []
    (folder / "sft" / "seed-1" / "evaluations" / "step-000020" / "miniature-worked.jsonl").unlink()
    content = build_comparison(folder)
    assert [(one["claim"], one["set"]) for one in content["unjudged"]] == [
        ("LUFFY forgets less than SFT.", "miniature/worked")
    ]
    assert "not on disk" in content["unjudged"][0]["reason"]
    assert any(note.startswith("The samples of 1 of 6 runs are not on disk") for note in content["notes"])
    for path in folder.rglob("evaluations/*/*.jsonl"):
        path.unlink()
    content = build_comparison(folder)
    judged = {(one["claim"], one["set"]) for one in content["verdicts"]}
    not_judged = {(one["claim"], one["set"]) for one in content["unjudged"]}
    assert judged | not_judged == {(one["claim"], one["set"]) for one in everything["verdicts"]}  # none is forgotten
    assert {name for _, name in judged} == {"training"}  # metrics alone
    assert not judged & not_judged


@pytest.mark.parametrize(
    ("steps", "every", "reasons"),
    [
        (4, 5, {"Policy shaping learns faster": "3 evaluations", "The traces' advantage falls": "10 steps"}),
        (20, 5, {}),
    ],
)
def test_short_runs_are_the_reason(tmp_path, steps, every, reasons):
    write_runs(tmp_path, ("luffy", "mixed"), seeds=2, problems=20, steps=steps, every=every)
    unjudged = build_comparison(tmp_path)["unjudged"]
    assert len(unjudged) == len(reasons)
    for one in unjudged:
        assert any(one["claim"].startswith(claim) and why in one["reason"] for claim, why in reasons.items())


def test_the_json_has_the_structure_others_rely_on(content):
    assert {"methods", "verdicts"} <= content.keys()
    entry = content["methods"]["luffy"]
    assert entry["seeds"] == 3
    assert entry["tokens"] == {"trained": 540000.0, "generated": 420000.0}
    assert entry["seconds"] == 30.0
    accuracy = entry["evaluations"]["miniature/longer"]["avg@1"]
    assert 0.4 < accuracy["low"] < accuracy["value"] < accuracy["high"] < 0.64
    for one in content["verdicts"]:
        assert {"claim", "set", "difference", "low", "high", "verdict"} <= one.keys()
        assert one["verdict"] in {"holds", "fails", "undecided"}
    json.dumps(content, allow_nan=False)


def test_best_needs_a_paired_difference(content):
    assert content["best"]["miniature/hard"] is None  # luffy 99 %, sft_rl 99.5 %
    assert content["best"]["miniature/worked"] == "on_policy"


def test_equal_tokens_interpolates_between_evaluations(tmp_path):
    """SFT processes 9,000 tokens a step, LUFFY 16,000: SFT's 20 steps are LUFFY's 11.25th."""
    write_runs(tmp_path, ("luffy", "sft"), seeds=1, problems=50, steps=20, every=5)
    equal = build_comparison(tmp_path)["at_equal_tokens"]
    assert equal["tokens"] == 180000
    run = read_comparison(tmp_path).methods["luffy"][0]
    at = {one.step: np.mean(list(one.outcomes.values())) for one in run.of_set("miniature/hard")}
    assert equal["evaluations"]["luffy"]["miniature/hard"]["value"] == pytest.approx(0.75 * at[10] + 0.25 * at[15])
    assert set(equal["evaluations"]["luffy"]) == {"miniature/hard"}  # the other sets were not watched


def test_unfinished_runs_do_not_count(tmp_path):
    write_runs(tmp_path, ("luffy",), seeds=1, problems=20, steps=20)
    write_run(tmp_path / "sft" / "seed-0", "sft", 0, problems=20, steps=20, until=10)
    content = build_comparison(tmp_path)
    assert list(content["methods"]) == ["luffy"]
    assert not [one for one in content["verdicts"] if "sft" in (one["method"], one["rival"])]
    assert content["incomplete"] == ["sft, seed 0: stopped after 10 steps; not counted."]


def test_unequal_data_is_said(tmp_path):
    write_runs(tmp_path, ("luffy", "sft"), seeds=1, problems=10, steps=4)
    path = tmp_path / "sft" / "seed-0" / "config.yaml"
    path.write_text(path.read_text().replace("sha256:1234", "sha256:9999"))
    assert any("same training data" in note for note in build_comparison(tmp_path)["notes"])


def test_writing_is_atomic(tmp_path, monkeypatch):
    write_runs(tmp_path, ("luffy",), seeds=1, problems=10, steps=4)
    path = write_comparison(tmp_path)
    before = path.read_text()
    assert json.loads(before) == build_comparison(tmp_path)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(RunError, match=r"comparison\.json: cannot be written \(No space left on device\)"):
        write_comparison(tmp_path)
    assert path.read_text() == before
    assert not list(tmp_path.glob(".comparison*"))


def test_the_target_is_what_was_trained_on():
    names = ["miniature/hard", "miniature/short", "miniature/validation", "aime"]
    usual = set_roles(names, {})
    assert usual == dict(zip(names, (Role.TARGET, Role.OTHER, Role.OTHER, Role.TARGET), strict=True))
    easy = set_roles(names, {"data": {"miniature": {"shortest": 2, "longest": 4}}})
    assert (easy["miniature/short"], easy["miniature/hard"]) == (Role.TARGET, Role.TRANSFER)


def test_every_claim_is_distinct_and_names_its_source():
    assert len({claim.text for claim in CLAIMS}) == len(CLAIMS)
    assert all("arXiv" in claim.source for claim in CLAIMS)
