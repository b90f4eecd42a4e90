import pytest
from hypothesis import given
from hypothesis import strategies as st

from luffy.data import benchmark_names, load_benchmark, parse_benchmark
from luffy.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("miniature/hard", ("miniature/hard", "miniature/hard", 1)),
        ("miniature/hard@8", ("miniature/hard", "miniature/hard", 8)),
        ("sets/amc.jsonl@32", ("sets/amc.jsonl", "amc", 32)),
        ("me@home/amc.jsonl", ("me@home/amc.jsonl", "amc", 1)),
        ("me@2/amc.jsonl", ("me@2/amc.jsonl", "amc", 1)),
        ("me@2/amc.jsonl@4", ("me@2/amc.jsonl", "amc", 4)),
        ("amc@x", ("amc@x", "amc@x", 1)),
        ("amc@2@4", ("amc@2", "amc@2", 4)),
    ],
)
def test_name_or_file_and_samples(text, expected):
    assert parse_benchmark(text) == expected


@pytest.mark.parametrize("text", ["", "@8", " @8", "miniature/hard@0"])
def test_benchmark_without_name_or_samples_is_refused(text):
    with pytest.raises(ConfigError):
        parse_benchmark(text)


@given(st.text(min_size=1), st.integers(1, 999_999))
def test_any_source_keeps_its_samples(source, samples):
    if source.strip():
        assert parse_benchmark(f"{source}@{samples}")[::2] == (source, samples)


def test_sets_of_the_miniature():
    for name in benchmark_names():
        if not name.startswith("miniature/"):
            continue
        problems = load_benchmark(name).problems
        assert len(problems) == 200
        assert {problem.source for problem in problems} == {name}


@pytest.mark.parametrize(
    ("source", "nearest"), [("miniature/hrad", "miniature/hard"), ("hard", "miniature/hard"), ("miniature/a.b/", "")]
)
def test_unknown_benchmark_names_the_nearest(source, nearest):
    with pytest.raises((ConfigError, DataError)) as error:
        load_benchmark(source)
    assert nearest in str(error.value)


def test_benchmark_from_a_file(write_rows):
    path = write_rows({"prompt": "x", "answer": "1"})
    assert load_benchmark(str(path)).problems[0].answer == "1"
    with pytest.raises(DataError, match="row 1"):
        load_benchmark(str(write_rows("x", name="broken.jsonl")))
    with pytest.raises(DataError, match="Did you mean"):
        load_benchmark(str(path.with_name("trai.jsonl")))
