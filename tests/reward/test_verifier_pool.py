import logging
import os
import platform
import signal
import subprocess
import sys
import textwrap
import time

import functions_under_test
import pytest

from luffy import load_config
from luffy.errors import ConfigError, RunError
from luffy.formats import CompletionFormat
from luffy.reward import Verdict, VerifierPool
from luffy.reward import pool as pool_module
from small_jobs import obey_interrupts

MISBEHAVING = "python:functions_under_test:misbehaving"
RIGHT, WRONG = ("1", "1"), ("2", "1")


@pytest.fixture(scope="module")
def one_worker():
    with VerifierPool(MISBEHAVING, workers=1, deadline=0.5) as pool:
        yield pool


@pytest.mark.parametrize(
    ("misbehavior", "failure"),
    [
        ("hang", "timeout"),
        ("hang in C", "timeout"),
        ("exit", "crash"),
        ("killed", "crash"),
        ("exit as if all was well", "timeout"),
        ("raise", "error: ValueError: no such answer"),
        ("sys.exit", "error: SystemExit: 2"),
        pytest.param(
            "eat memory",
            "memory",
            marks=pytest.mark.skipif(platform.system() != "Linux", reason="memory limits are for Linux"),
        ),
    ],
)
def test_misbehaving_verifier_costs_one_verdict_and_not_its_neighbours(one_worker, misbehavior, failure):
    verdicts = one_worker.verify_all([RIGHT, (misbehavior, "1"), RIGHT, WRONG])
    assert verdicts == [Verdict(True, None), Verdict(False, None, failure), Verdict(True, None), Verdict(False, None)]


@pytest.mark.skipif(platform.system() != "Linux", reason="memory limits are for Linux")
@pytest.mark.parametrize("misbehavior", ["eat memory", "eat memory slowly", "eat memory and hide it"])
def test_memory_is_limited_and_counted_as_its_own_cause(misbehavior):
    with VerifierPool(MISBEHAVING, workers=1, deadline=10, memory=200 * 2**20) as pool:
        verdicts = pool.verify_all([RIGHT, (misbehavior, "1"), RIGHT, ("take 100 MiB", "1"), RIGHT])
    assert [verdict.failure for verdict in verdicts] == [None, "memory", None, None, None]
    assert [verdict.correct for verdict in verdicts] == [True, False, True, False, True]


def test_hung_answers_cost_their_deadlines_and_little_more():
    with VerifierPool("math", workers=1, deadline=0.5) as pool:
        pool.verify_all([RIGHT])
        start = time.perf_counter()
        verdicts = pool.verify_all([("\\boxed{9^{9^{9^{9}}}}", "5"), RIGHT] * 3)
        seconds = time.perf_counter() - start
    assert [verdict.failure for verdict in verdicts] == ["timeout", None] * 3
    assert seconds < 3 * 0.5 + 3.0  # three new workers that had to import math-verify would take longer


def test_math_that_never_ends_is_stopped():
    with VerifierPool("math", workers=1, deadline=0.5) as pool:
        verdicts = pool.verify_all([("\\boxed{9^{9^{9^{9}}}}", "5"), ("\\boxed{5}", "5")])
    assert [verdict.failure for verdict in verdicts] == ["timeout", None]
    assert verdicts[1].correct


def test_two_hangs_do_not_block_the_next(one_worker):
    verdicts = one_worker.verify_all([("hang", "1"), ("hang", "1"), RIGHT])
    assert [verdict.failure for verdict in verdicts] == ["timeout", "timeout", None]
    assert verdicts[-1].correct


def test_deadline_is_for_one_completion_and_not_for_the_queue():
    with VerifierPool("python:functions_under_test:slow", workers=1, deadline=0.4) as pool:
        assert all(verdict.correct for verdict in pool.verify_all([RIGHT] * 6))  # 0.6 s together


def test_verdicts_come_in_order_from_several_workers():
    with VerifierPool("python:functions_under_test:equal", workers=2, deadline=5) as pool:
        pairs = [(str(number), str(number // 2 * 2)) for number in range(200)]
        assert [verdict.correct for verdict in pool.verify_all(pairs)] == [number % 2 == 0 for number in range(200)]


def test_gate_and_threshold_reach_the_workers():
    gate = CompletionFormat(gated=True)
    with VerifierPool("math", workers=1, deadline=10, gate=gate) as pool:
        verdicts = pool.verify_all([("\\boxed{5}", "5"), ("\\boxed{4}</think>\\boxed{5}", "5")])
    assert verdicts == [Verdict(False, None), Verdict(True, "5")]


@pytest.mark.parametrize("kind", ["exact", "math"])
def test_pool_of_a_configuration(kind):
    settings = {"reward.kind": kind, "reward.format": "closed_thought", "reward.deadline": 10}
    with VerifierPool.of(load_config(overrides=settings | {"data.thought_closing": "[/T]"})) as pool:
        assert [one.correct for one in pool.verify_all([("5", "5"), ("hm</think>5", "5"), ("hm[/T]5", "5")])] == [
            False,
            False,
            True,
        ]
    with VerifierPool.of(load_config(overrides={"reward.memory": None}), functions_under_test.equal) as pool:
        assert pool.verify_all([RIGHT])[0].correct


def test_submit_returns_before_the_verdicts():
    with VerifierPool("python:functions_under_test:slow", workers=1, deadline=5) as pool:
        pool.verify_all([RIGHT])
        start = time.perf_counter()
        pending = pool.submit([RIGHT] * 3)
        assert time.perf_counter() - start < 0.1
        assert [verdict.correct for verdict in pending.result()] == [True] * 3
        assert pending.result() == pending.result()


@pytest.mark.parametrize("kind", ["exact", "number", "math"])
def test_named_kinds_work_with_and_without_workers(kind):
    for workers in (0, 1):
        with VerifierPool(kind, workers=workers, deadline=10) as pool:
            verdicts = pool.verify_all([("#### 42", "42"), ("#### 41", "42")])
        assert verdicts == [Verdict(True, "42"), Verdict(False, "41")]


def test_empty_batch_has_no_verdicts():
    with VerifierPool(MISBEHAVING, workers=1, deadline=1) as pool:
        assert pool.verify_all([]) == []


def test_without_workers_a_function_runs_here():
    with VerifierPool(lambda text, answer: os.getpid() == int(answer), workers=0, deadline=1) as pool:
        assert pool.verify_all([("", str(os.getpid()))])[0].correct


@pytest.mark.skipif(platform.system() != "Linux", reason="forked workers are for Linux")
def test_function_that_cannot_be_imported_still_has_a_deadline():
    accepted = {"1"}
    own = lambda text, answer: functions_under_test.misbehaving(text, answer) and text in accepted  # noqa: E731
    with VerifierPool(own, workers=1, deadline=0.5) as pool:
        verdicts = pool.verify_all([("hang", "1"), RIGHT, (str(os.getpid()), str(os.getpid()))])
    assert [verdict.failure for verdict in verdicts] == ["timeout", None, None]
    assert [verdict.correct for verdict in verdicts] == [False, True, False]


def test_function_that_no_worker_can_have_runs_here_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with (
        caplog.at_level(logging.WARNING),
        VerifierPool(lambda text, answer: text == answer, workers=1, deadline=1) as pool,
    ):
        assert pool.verify_all([RIGHT])[0].correct
    assert "without a deadline" in caplog.text


def test_unknown_kind_is_refused_before_any_worker_starts():
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        VerifierPool("exakt", workers=1, deadline=1)


@pytest.mark.parametrize("module", ["torch", "transformers"])
def test_workers_do_not_import_heavy_modules(module):
    with VerifierPool("python:functions_under_test:loaded_modules", workers=1, deadline=5) as pool:
        assert pool.verify_all([(module, "")])[0].correct


def test_closed_pool_says_so():
    pool = VerifierPool(MISBEHAVING, workers=1, deadline=60)
    with pool:
        pending = pool.submit([("hang", "1")])
    with pytest.raises(RunError, match="closed"):
        pool.submit([RIGHT])
    with pytest.raises(RunError, match="closed"):
        pending.result()


def test_pool_closes_at_once_with_a_long_queue():
    start = time.perf_counter()
    with VerifierPool(MISBEHAVING, workers=1, deadline=60) as pool:
        pool.submit([("hang", "1"), *[("x" * 200_000, "1")] * 200])
    assert time.perf_counter() - start < 5


def test_worker_killed_while_idle_is_replaced():
    with VerifierPool(MISBEHAVING, workers=1, deadline=5) as pool:
        assert pool.verify_all([RIGHT])[0].correct
        for worker in list(pool._pool._pool_manager.worker_manager.workers.values()):
            os.kill(worker.pid, signal.SIGKILL)
        time.sleep(0.3)
        assert [verdict.correct for verdict in pool.verify_all([RIGHT, WRONG])] == [True, False]


def test_workers_that_never_start_stop_the_run(monkeypatch):
    monkeypatch.setattr(pool_module, "start_worker", os._exit)
    pool = VerifierPool(MISBEHAVING, workers=1, deadline=1)
    pool._start = (3,)
    with pytest.raises(RunError, match="workers ended"), pool:
        pool.verify_all([RIGHT])


SCRIPT = """
    import sys, time
    from luffy.reward import VerifierPool

    def own(text, answer):
        while text == "hang":
            pass
        return text == answer

    print("started")
    with VerifierPool({kind}, workers=2, deadline={deadline}) as pool:
        print([verdict.correct for verdict in pool.verify_all([("1", "1"), ("2", "1")])], flush=True)
        {then}
"""


def run_script(tmp_path, **parts):
    script = tmp_path / "newcomer.py"
    script.write_text(textwrap.dedent(SCRIPT).format(**parts))
    environment = os.environ | {"PYTHONPATH": os.path.dirname(functions_under_test.__file__)}
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
        preexec_fn=obey_interrupts,
    )


@pytest.mark.parametrize("kind", ["own", "'python:functions_under_test:equal'"])
def test_script_without_main_guard_works(tmp_path, kind):
    output, errors = run_script(tmp_path, kind=kind, deadline=5, then="pass").communicate(timeout=30)
    assert output.splitlines() == ["started", "[True, False]"]
    assert errors == ""


@pytest.mark.parametrize("kind", ["own", "'python:functions_under_test:misbehaving'"])
def test_interrupt_shows_no_traceback_of_a_worker(tmp_path, kind):
    process = run_script(tmp_path, kind=kind, deadline=60, then="pool.verify_all([('hang', '1')])")
    assert [process.stdout.readline().strip() for _ in range(2)] == ["started", "[True, False]"]
    time.sleep(0.3)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to the parent and to all workers
    _, errors = process.communicate(timeout=15)
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "worker" not in errors


def test_interrupt_during_the_start_of_workers(tmp_path):
    process = run_script(tmp_path, kind="'math'", deadline=60, then="pass")
    assert process.stdout.readline().strip() == "started"
    time.sleep(0.12)  # workers are importing
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert errors.count("Traceback") <= 1
