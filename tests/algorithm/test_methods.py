import subprocess
import sys
from dataclasses import fields

from luffy.algorithm import METHODS, SHAPINGS


def differing(one, other):
    names = [field.name for field in fields(METHODS[one]) if field.name not in ("summary", "source")]
    return {name for name in names if getattr(METHODS[one], name) != getattr(METHODS[other], name)}


def test_the_rows_of_the_papers_tables_are_there():
    assert set(METHODS) >= {
        "on_policy", "luffy", "mixed", "luffy_clip", "on_policy_shaping", "rl_sft", "sft", "sft_rl",
    }  # fmt: skip


def test_methods_differ_in_few_choices():
    assert differing("luffy", "on_policy") == {"traces", "shaping", "clip"}
    assert differing("luffy", "luffy_clip") == {"clip"}
    assert differing("luffy_clip", "mixed") == {"shaping"}
    assert differing("mixed", "on_policy") == {"traces"}
    assert differing("on_policy", "on_policy_shaping") == {"sampled_shaping"}
    assert differing("on_policy", "rl_sft") == {"traces", "baseline"}
    assert differing("on_policy", "sft_rl") == {"phases"}


def test_every_record_is_sound():
    for method in METHODS.values():
        assert {method.shaping, method.sampled_shaping} <= set(SHAPINGS)
        assert method.summary.endswith(".")
        assert "arXiv" in method.source
        assert method.learns_from_traces == (method.traces != "none" or "sft" in method.phases)


def test_the_records_need_no_torch():
    code = "import sys, luffy.algorithm.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
