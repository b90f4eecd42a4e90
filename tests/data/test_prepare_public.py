"""The public sets in their real schema, the made tasks, and what is written when something is wrong."""

import json
import os
from pathlib import Path

import pytest

from luffy.data import load_problems, prepare_public
from luffy.data.public_sets import PUBLIC_SETS
from luffy.errors import ConfigError, DataError
from luffy.reward.verifiers import verify_number

SHARED = Path(__file__).parents[3] / "shared/data"

GSM8K = {
    "question": "Natalia sold clips to 48 friends in April, and half as many in May. How many altogether?",
    "answer": "In May she sold 48/2 = <<48/2=24>>24 clips.\nAltogether 48+24 = <<48+24=72>>72 clips.\n#### 72",
}
OPENR1 = {
    "problem": "What is $9 \\cdot 20$?",
    "solution": "It is $\\boxed{180}$.",
    "answer": "180",
    "problem_type": "Algebra",
    "question_type": "math-word-problem",
    "source": "olympiads",
    "uuid": "a6f2",
    "is_reasoning_complete": [True, True, True, False],
    "generations": [
        "<think>\nIt is 170.\n</think>\n\\boxed{170}",
        "<think>\nIt is surely and without any doubt 180.\n</think>\n\\boxed{180}",
        "<think>\n180.\n</think>\n\\boxed{180}",
        "<think>\nIt is",
    ],
    "correctness_math_verify": [False, True, True, True],
    "correctness_llama": None,
    "finish_reasons": ["stop", "stop", "stop", "length"],
    "correctness_count": 2,
    "messages": [{"role": "user", "content": "What is $9 \\cdot 20$?"}],
}
MATH = {
    "problem": "What is $1+1$?",
    "level": "Level 1",
    "type": "Counting & Probability",
    "solution": "We add $1$ and $1$ and get $\\boxed{2}$, and not $1$.",
}
NUMINA = {
    "problem": "What is $1+1$?",
    "solution": "We add and get $\\boxed{2}$.",
    "answer": "2",
    "problem_type": "Algebra",
    "question_type": "math-word-problem",
    "problem_is_valid": "Yes",
    "solution_is_valid": "Yes",
    "source": "cn_contest",
    "synthetic": False,
}


@pytest.fixture
def prepare(write_rows, tmp_path):
    """Prepare a set from rows. Returns the report, the problems, and what was left out."""

    def run(name, *rows, **options):
        out = tmp_path / "out.jsonl"
        report = prepare_public(name, out, files=[str(write_rows(*rows))], **options)
        beside = tmp_path / "out-left-out.jsonl"
        left_out = [json.loads(line) for line in beside.read_text().splitlines()] if beside.exists() else []
        return report, load_problems(out).problems, left_out

    return run


def test_gsm8k_solutions_end_in_a_checkable_answer(prepare):
    report, problems, left_out = prepare("gsm8k", GSM8K, GSM8K | {"answer": "2000 + 125 = 2125\n#### 2,125"})
    assert [problem.answer for problem in problems] == ["72", "2125"]
    assert problems[0].prompt == GSM8K["question"]
    expected = "In May she sold 48/2 = 24 clips.\nAltogether 48+24 = 72 clips.\n#### 72"
    assert problems[0].traces[0].text == expected
    assert problems[1].traces[0].text.endswith("\n#### 2125")
    assert (report.problems, report.traces, left_out) == (2, 2, [])
    assert not any("left out" in line for line in report.lines())


def test_what_is_wrong_with_gsm8k_rows_is_counted_and_named(prepare):
    report, problems, left_out = prepare(
        "gsm8k",
        GSM8K,
        GSM8K | {"answer": "no mark 72"},
        GSM8K | {"question": None},
        "broken",
        GSM8K | {"answer": "####"},
    )
    assert len(problems) == 1
    assert report.left_out_rows == {
        "no final answer after ####": 2,
        "a row that is not as the set has them": 2,
    }
    assert [item["row"] for item in left_out] == [2, 3, 4, 5]
    assert left_out[1]["detail"] == "row 3: 'question' must be text, got nothing"
    assert "row 4: not valid JSON" in left_out[2]["detail"]


@pytest.mark.skipif(not (SHARED / "gsm8k").exists(), reason="the public files are not here")
@pytest.mark.parametrize(("name", "count"), [("train", 7473), ("test", 1319)])
def test_all_of_gsm8k(tmp_path, name, count):
    report = prepare_public("gsm8k", tmp_path / "x.jsonl", files=[str(SHARED / f"gsm8k/{name}.jsonl")])
    assert (report.problems, report.traces, report.without_traces) == (count, count, 0)
    assert not report.left_out_rows
    assert not report.left_out_traces
    assert "<<" not in (tmp_path / "x.jsonl").read_text()


def test_openr1_keeps_the_first_trace_that_is_complete_right_and_short(prepare, plain_tokenizer):
    report, problems, left_out = prepare("openr1-math", OPENR1, tokenizer=plain_tokenizer)
    assert [trace.text for trace in problems[0].traces] == [OPENR1["generations"][1]]
    assert (problems[0].id, problems[0].answer, problems[0].source) == ("a6f2", "180", "olympiads")
    assert problems[0].traces[0].model == "DeepSeek-R1"
    assert [(item["trace"], item["reason"]) for item in left_out] == [
        (1, "trace verified as wrong by the set"),
        (4, "trace not complete"),
        (3, "one trace a problem is kept"),
    ]
    assert report.without_traces == 0


def test_openr1_other_choices_of_traces(prepare, plain_tokenizer):
    _, problems, _ = prepare("openr1-math", OPENR1, tokenizer=plain_tokenizer, keep="shortest")
    assert [trace.text for trace in problems[0].traces] == [OPENR1["generations"][2]]
    _, problems, _ = prepare("openr1-math", OPENR1, tokenizer=plain_tokenizer, keep="all")
    assert [trace.text for trace in problems[0].traces] == OPENR1["generations"][1:3]


def test_openr1_limit_counts_the_end_and_leaves_out_problems_without_a_trace(prepare, plain_tokenizer):
    short = OPENR1["generations"][2]
    length = len(plain_tokenizer(short, add_special_tokens=False)["input_ids"]) + 1
    report, problems, _ = prepare("openr1-math", OPENR1, tokenizer=plain_tokenizer, max_tokens=length)
    assert [trace.text for trace in problems[0].traces] == [short]
    assert report.left_out_traces[f"trace of more than {length} tokens"] == 1
    other = OPENR1 | {"uuid": "b", "generations": ["180"] * 4}
    report, problems, _ = prepare("openr1-math", OPENR1, other, tokenizer=plain_tokenizer, max_tokens=length - 1)
    assert [problem.id for problem in problems] == ["b"]
    assert report.left_out_rows == {"no trace is left": 1}


def test_openr1_subsets_differ_in_their_limit_only():
    full, easy, hard = (PUBLIC_SETS[name] for name in ("openr1-math", "openr1-math-easy", "openr1-math-hard"))
    assert (easy.max_tokens, hard.max_tokens, full.max_tokens) == (2048, 4096, 8192)
    assert easy.convert is hard.convert is full.convert


def test_openr1_flags_must_be_there_and_answers_checkable(prepare, plain_tokenizer):
    rows = [
        OPENR1,
        OPENR1 | {"uuid": "b", "correctness_math_verify": [True]},
        OPENR1 | {"uuid": "c", "answer": "proof"},
        OPENR1,
        OPENR1 | {"uuid": "d", "correctness_math_verify": None},
    ]
    report, problems, left_out = prepare("openr1-math", *rows, tokenizer=plain_tokenizer)
    assert len(problems) == 1
    assert report.left_out_rows == {
        "a row that is not as the set has them": 2,
        "no checkable answer": 1,
        "an id that was used before": 1,
    }
    assert "with a truth value for each of the 4 generations, got 1" in str(left_out)


def test_openr1_can_be_verified_again(prepare, plain_tokenizer):
    lying = OPENR1 | {"correctness_math_verify": [True] * 4}
    _, problems, _ = prepare("openr1-math", lying, tokenizer=plain_tokenizer, kind="math", keep="all")
    assert [trace.text for trace in problems[0].traces] == OPENR1["generations"][1:3]


def test_openr1_from_a_folder_of_parquet_files(tmp_path, plain_tokenizer):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        rows = [OPENR1 | {"uuid": f"{number}-{row}"} for row in range(3)]
        parquet.write_table(arrow.Table.from_pylist(rows), folder / f"train-0000{number}-of-00002.parquet")
    seen = []
    report = prepare_public(
        "openr1-math", tmp_path / "x.jsonl", files=[str(folder)], tokenizer=plain_tokenizer,
        on_progress=lambda *progress: seen.append(progress),
    )  # fmt: skip
    assert report.problems == 6
    assert seen == [(6, 1.0)]


def test_math_takes_the_answer_from_the_box(prepare):
    report, problems, left_out = prepare(
        "math", MATH, MATH | {"solution": "It is 2."}, MATH | {"answer": "3", "problem": "What is $1+2$?"}
    )
    assert [(problem.answer, len(problem.traces)) for problem in problems] == [("2", 1), ("3", 0)]
    assert problems[0].source == "math/counting_&_probability"
    assert report.left_out_rows == {"no boxed answer": 1}
    assert report.left_out_traces == {"trace that is not right": 1}
    assert left_out[1]["detail"] == "does not verify: got '2', expected '3'"
    assert report.without_traces == 1


def test_numina_leaves_out_what_cannot_be_checked(prepare):
    rows = [
        NUMINA,
        NUMINA | {"question_type": "proof", "answer": "proof"},
        NUMINA | {"answer": "notfound"},
        NUMINA | {"problem_is_valid": "Incomplete"},
        NUMINA | {"solution": None},
        {"source": "amc", "problem": "1+1?", "solution": "\\boxed{2}", "messages": []},  # NuminaMath-CoT
    ]
    report, problems, _ = prepare("numina", *rows)
    assert [(problem.answer, problem.source, len(problem.traces)) for problem in problems] == [
        ("2", "cn_contest", 1),
        ("2", "cn_contest", 0),
        ("2", "amc", 1),
    ]
    assert report.left_out_rows == {"a proof": 1, "no checkable answer": 1, "problem_is_valid is not Yes": 1}


def test_limit_takes_the_first_problems(prepare):
    rows = [GSM8K | {"question": f"{number}?"} for number in range(5)]
    report, problems, _ = prepare("gsm8k", "x", *rows, limit=2)
    assert [problem.prompt for problem in problems] == ["0?", "1?"]
    assert report.problems == 2


# Made tasks


def test_a_task_of_reasoning_gym_with_parameters(tmp_path):
    reasoning_gym = pytest.importorskip("reasoning_gym")
    out = tmp_path / "x.jsonl"
    parameters = {"size": 4, "min_terms": 3, "max_terms": 3}
    report = prepare_public("reasoning-gym:chain_sum", out, parameters=parameters)
    problems = load_problems(out).problems
    assert [problem.id for problem in problems] == [f"chain_sum-0-{number}" for number in range(4)]
    expected = reasoning_gym.create_dataset("chain_sum", seed=0, **parameters)
    for problem, entry in zip(problems, expected, strict=True):
        reference = json.loads(problem.answer)
        assert problem.prompt == entry["question"]
        assert (reference["task"], reference["answer"]) == ("chain_sum", entry["answer"])
        assert reference["metadata"]["num_terms"] == 3
        assert reference["parameters"] == {"min_terms": 3, "max_terms": 3}
    assert report.without_traces == 0
    before = out.read_bytes()
    prepare_public("reasoning-gym:chain_sum", out, parameters=parameters)
    assert out.read_bytes() == before
    prepare_public("reasoning-gym:chain_sum", out, parameters=parameters | {"seed": 1})
    assert out.read_bytes() != before


def test_a_task_that_yields_worked_solutions(tmp_path):
    pytest.importorskip("reasoning_gym")
    out = tmp_path / "x.jsonl"
    report = prepare_public("reasoning-gym:gsm_symbolic", out, parameters={"size": 20})
    assert report.problems == report.traces == 20
    for problem in load_problems(out).problems:
        assert float(problem.traces[0].text.rpartition("#### ")[2]) == float(json.loads(problem.answer)["answer"])


def test_a_sum_is_worked_out_from_left_to_right():
    from luffy.data.procedural import running_sum

    assert running_sum({"expression": "5 - 12 + 4"}) == "5 - 12 = -7\n-7 + 4 = -3\n#### -3"


def test_a_task_for_another_verifier_has_plain_answers(tmp_path):
    pytest.importorskip("reasoning_gym")
    out = tmp_path / "x.jsonl"
    report = prepare_public("reasoning-gym:chain_sum", out, parameters={"size": 5}, kind="number")
    assert report.kind == "number"
    for problem in load_problems(out).problems:
        assert problem.traces[0].text.endswith(f"\n#### {problem.answer}")
        assert verify_number(problem.traces[0].text, problem.answer).correct
    with pytest.raises(DataError, match="only the task's own scorer can grade it"):
        prepare_public("reasoning-gym:graph_color", tmp_path / "y.jsonl", parameters={"size": 1}, kind="exact")


def test_tuples_of_an_entry_keep_their_kind(tmp_path):
    pytest.importorskip("reasoning_gym")
    out = tmp_path / "x.jsonl"
    prepare_public("reasoning-gym:rearc", out, parameters={"size": 1})
    metadata = json.loads(load_problems(out).problems[0].answer)["metadata"]
    assert set(metadata["output"]) == {"tuple"}


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("reasoning-gym:chain_smu", {}, "no task 'chain_smu'. Did you mean 'chain_sum'"),
        ("reasoning-gym:chain_sum", {"min_trms": 1}, "no parameter 'min_trms'. Did you mean 'min_terms'"),
        ("reasoning-gym:chain_sum", {"min_terms": -1}, "AssertionError: min_terms must be"),
        ("gms8k", {}, "unknown set 'gms8k'. Did you mean 'gsm8k'"),
        ("gsm8k", {"size": 3}, "gsm8k: has no parameters, got size"),
        ("openr1-math", {}, "at most 8192 tokens need a tokenizer to count them: --model"),
        ("miniature", {"traecd": 3}, "unknown key 'data.miniature.traecd'. Did you mean 'data.miniature.traced'"),
    ],
)
def test_wrong_names_and_parameters_are_explained(tmp_path, name, parameters, message):
    if name.startswith("reasoning-gym"):
        pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match=message):
        prepare_public(name, tmp_path / "x.jsonl", parameters=parameters)
    assert not list(tmp_path.iterdir())


def test_the_miniature_is_what_a_run_trains_on(tmp_path):
    from luffy.config import DataConfig
    from luffy.data import load_training_problems

    out = tmp_path / "x.jsonl"
    prepare_public("miniature", out, parameters={"problems": 6, "traced": 4})
    expected = load_training_problems(DataConfig(miniature={"problems": 6, "traced": 4})).problems
    assert load_problems(out).problems == expected


# Nothing half-written


def test_a_file_of_another_set_is_refused_and_what_was_there_stays(tmp_path, write_rows):
    out = tmp_path / "out.jsonl"
    out.write_text("precious")
    with pytest.raises(DataError, match=r"is not gsm8k: there is no column 'question'.* It has: problem, level"):
        prepare_public("gsm8k", out, files=[str(write_rows(MATH))])
    with pytest.raises(DataError, match=r"no problem is left, so nothing was written. Left out: no final answer"):
        prepare_public("gsm8k", out, files=[str(write_rows(GSM8K | {"answer": "x"}))])
    with pytest.raises(DataError, match="there is no such file"):
        prepare_public("gsm8k", out, files=[str(tmp_path / "none.jsonl")])
    assert out.read_text() == "precious"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "train.jsonl"]


def test_the_file_that_is_read_is_not_overwritten(write_rows):
    path = write_rows(GSM8K)
    with pytest.raises(ConfigError, match="is one of the files that are read"):
        prepare_public("gsm8k", path, files=[str(path)])
    assert json.loads(path.read_text()) == GSM8K


def test_an_interruption_leaves_nothing(tmp_path, write_rows):
    def interrupt(rows, share):
        raise KeyboardInterrupt

    rows = [GSM8K | {"question": f"{number}?"} for number in range(300)]
    with pytest.raises(KeyboardInterrupt):
        prepare_public("gsm8k", tmp_path / "out.jsonl", files=[str(write_rows(*rows))], on_progress=interrupt)
    assert os.listdir(tmp_path) == ["train.jsonl"]
