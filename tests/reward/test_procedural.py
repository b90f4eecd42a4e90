"""Tasks of reasoning-gym, scored by their own scorers, which must not run what a completion says."""

import json

import pytest

from luffy.errors import DataError
from luffy.reward import VerifierPool, verify
from luffy.reward.procedural import reasoning_gym_answer

reasoning_gym = pytest.importorskip("reasoning_gym")

EVALUATING = ["countdown", "puzzle24", "n_queens", "spiral_matrix", "string_insertion", "binary_matrix"]
TASKS = [*EVALUATING, "chain_sum", "arc_1d", "basic_arithmetic", "knights_knaves", "word_ladder", "sudoku", "rearc"]


def problem(task, **parameters):
    """The first problem of a task: its own solution and the reference answer."""
    entry = reasoning_gym.create_dataset(task, size=1, seed=5, **parameters)[0]
    return entry["answer"], reasoning_gym_answer(task, entry, parameters)


@pytest.mark.parametrize("task", TASKS)
def test_own_solution_has_full_score_through_json(task):
    solution, reference = problem(task)
    verdict = verify("reasoning_gym", f"Let me see.\n<answer>{solution}</answer>", reference)
    assert (verdict.correct, verdict.failure) == (True, None)
    assert not verify("reasoning_gym", "<answer>no idea</answer>", reference).correct


@pytest.mark.parametrize(
    "completion",
    ["{}", "so\n#### {}", "so \\boxed{{{}}}", "<answer>0</answer> no: <answer>{}</answer>", "<answer>\n{}\n</answer>."],
)
def test_where_the_answer_stands(completion):
    solution, reference = problem("chain_sum")
    assert verify("reasoning_gym", completion.format(solution), reference).correct
    assert not verify("reasoning_gym", completion.format(f"1{solution}7"), reference).correct


def test_threshold_accepts_part_of_a_point():
    solution, reference = problem("countdown")
    wordy = f"<answer>{solution} - 1</answer>"  # a wrong value, for which countdown gives 0.05
    assert not verify("reasoning_gym", wordy, reference).correct
    assert not verify("reasoning_gym", wordy, reference, threshold=0.06).correct
    assert verify("reasoning_gym", wordy, reference, threshold=0.05).correct


def test_tuples_of_the_metadata_survive():
    _, reference = problem("rearc")
    assert '{"tuple": [' in reference


def test_parameters_are_those_of_the_scorer():
    _, reference = problem("countdown", max_numbers=5)
    assert json.loads(reference)["parameters"] == {"max_numbers": 5}
    broken = json.dumps(json.loads(reference) | {"parameters": {"no_such": 1}})
    assert "no_such" in verify("reasoning_gym", "1", broken).failure


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("42", "is not a JSON object"),
        ("no JSON", "is not a JSON object"),
        ('{"task": "chain_sum", "answer": "1"}', "is not a JSON object"),
        ('{"task": "chain_sun", "answer": "1", "metadata": {}}', "no task 'chain_sun'. Did you mean 'chain_sum'?"),
    ],
)
def test_reference_that_is_none_is_a_failure(reference, message):
    verdict = verify("reasoning_gym", "1", reference)
    assert not verdict.correct
    assert message in verdict.failure


def test_metadata_that_is_no_plain_data_is_refused():
    with pytest.raises(DataError, match="'chain_sum': its metadata cannot be written as JSON"):
        reasoning_gym_answer("chain_sum", {"answer": "1", "metadata": {"x": object()}})


ATTACKS = [
    "open('{}', 'w')",
    "__import__('os').system('touch {}')",
    "[open][0]('{}', 'w')",
    "(open)('{}', 'w')",
    "(open#\n('{}', 'w'))",
    "open\\\n('{}', 'w')",
    "ｏｐｅｎ('{}', 'w')",
    "f\"{{open('{}', 'w')}}\"",
    "5! + open('{}', 'w')",
    "[open('{}', 'w') for x in [1]]",
    "(lambda: open('{}', 'w'))()",
    "(x := open)('{}', 'w')",
    "''.join(open('{}', 'w'))",
]


@pytest.mark.parametrize("task", [*EVALUATING, "simple_integration", "polynomial_multiplication"])
def test_completion_that_is_a_program_is_wrong_and_not_run(task, tmp_path):
    _, reference = problem(task)
    written = tmp_path / "written"
    for attack in ATTACKS:
        verdict = verify("reasoning_gym", f"<answer>{attack.format(written)}</answer>", reference)
        assert (verdict.correct, verdict.failure) == (False, None), attack
        assert not written.exists(), attack


def test_reference_that_is_a_program_is_a_failure_and_not_run(tmp_path):
    _, reference = problem("bitwise_arithmetic")
    written = tmp_path / "written"
    program = json.loads(reference) | {"metadata": {"problem": f"open('{written}', 'w')"}}
    verdict = verify("reasoning_gym", "0x1", json.dumps(program))
    assert "would run as code" in verdict.failure
    assert not written.exists()


def test_in_worker_processes():
    solution, reference = problem("chain_sum")
    with VerifierPool("reasoning_gym", workers=1, deadline=20) as pool:
        verdicts = pool.verify_all([(solution, reference), ("<answer>x</answer>", reference)])
    assert [verdict.correct for verdict in verdicts] == [True, False]


@pytest.mark.slow
def test_own_solution_of_every_task_has_full_score():
    from reasoning_gym.factory import DATASETS

    for task in sorted(set(DATASETS) - {"composite"}):
        for entry in reasoning_gym.create_dataset(task, size=5, seed=3):
            if entry["answer"] is not None:
                verdict = verify(
                    "reasoning_gym", f"<answer>{entry['answer']}</answer>", reasoning_gym_answer(task, entry)
                )
                assert (verdict.correct, verdict.failure) == (True, None), task
