"""Mutated files never end in a traceback; `benchmarks/fuzz.py` tries 10,000 of them (docs/reliability.md)."""

import random

import fuzz
import pytest


@pytest.mark.parametrize("kind", fuzz.KINDS)
def test_mutations_are_sound_or_said(kind):
    outcomes = [fuzz.try_case(kind, number, 0) for number in range(70)]
    assert not [one for one in outcomes if one.startswith("finding")]
    assert outcomes.count("message") > 10
    assert outcomes.count("sound") > 10


FOUND = [("report", 982), ("report", 2331), ("run folder", 1948), ("run folder", 2461)]  # and mended


@pytest.mark.parametrize(("kind", "number"), FOUND)
def test_what_was_found_stays_mended(kind, number):
    assert not fuzz.try_case(kind, number, 0).startswith("finding")


def test_a_finding_would_be_noticed(monkeypatch):
    def broken(draw, folder):
        raise KeyError("step")

    monkeypatch.setitem(fuzz.KINDS, "data", broken)
    assert fuzz.try_case("data", 1, 0) == "finding: KeyError: 'step'"


@pytest.mark.parametrize("mutation", fuzz.MUTATIONS)
def test_mutations_change_something(mutation):
    content = b'{"id": "a", "prompt": "b"}\n{"id": "c", "prompt": "d"}\n'
    assert len({mutation(content, random.Random(seed)) for seed in range(20)} - {content}) >= 1
    mutation(b"", random.Random(0))


@pytest.mark.slow
def test_thousands_of_mutations():
    cases = [(kind, number) for number in range(1000, 2000) for kind in fuzz.KINDS]
    findings = [one for one in fuzz.try_in_a_process(cases, 1) if one.startswith("finding")]
    assert not findings
