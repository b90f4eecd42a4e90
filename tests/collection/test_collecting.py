import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from tests.fake_server import Raw, chat, serving

from luffy.collection import Collector, TeacherSettings
from luffy.config import load_config
from luffy.data import LoadedProblems, load_problems
from luffy.errors import RunError
from luffy.reward import VerifierPool
from luffy.rollout import endpoint
from luffy.rollout.endpoint import EndpointClient
from luffy.types import Problem, Trace

PROBLEMS = [Problem(f"p{n}", f"What is {n} + 1?", str(n + 1), source="sums") for n in range(6)]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)


def asked_for(request):
    return int(request["messages"][-1]["content"].split()[2])


def collect(server, out, *, problems=PROBLEMS, samples=1, keep="first", overrides=(), **client_settings):
    config = load_config(None, ["reward.kind=number", "reward.workers=0", *overrides])
    source = LoadedProblems.of(problems)
    settings = TeacherSettings.of("teacher", samples, config, source.digest)
    with EndpointClient(server.url, "teacher", **client_settings) as client, VerifierPool.of(config) as pool:
        return Collector(source, client, settings, out, keep=keep).run(pool)


def test_right_answers_become_traces_and_wrong_ones_are_counted(tmp_path):
    def respond(request, number):
        n = asked_for(request)
        if n == 2:
            return chat("Hence #### 99")
        if n == 3:
            return chat("I was cut", finish="length")
        if n == 4:
            return chat("No idea")
        return chat(f"{n} + 1. #### {n + 1}")

    out = tmp_path / "traces.jsonl"
    with serving(respond) as server:
        report = collect(server, out)
    assert (report.problems, report.solved, report.verified, report.traces) == (6, 3, 3, 3)
    assert report.rejected == {"wrong": 1, "cut off by the length limit": 1, "no answer found": 1}
    loaded = load_problems(out).problems
    assert [problem.id for problem in loaded] == [problem.id for problem in PROBLEMS]
    assert loaded[0].traces == (Trace("0 + 1. #### 1", "teacher"),)
    assert loaded[2].traces == ()
    assert (report.prompt_tokens, report.completion_tokens) == (42, 30)


def test_traces_that_were_there_stay(tmp_path):
    problems = [Problem("p0", "What is 0 + 1?", "1", traces=(Trace("old #### 1", "me"),))]
    with serving(lambda request, number: chat("new #### 1")) as server:
        collect(server, tmp_path / "t.jsonl", problems=problems)
    (loaded,) = load_problems(tmp_path / "t.jsonl").problems
    assert [trace.text for trace in loaded.traces] == ["old #### 1", "new #### 1"]


@pytest.mark.parametrize(
    ("keep", "kept", "requests"),
    [("first", ["long one #### 1"], 2), ("shortest", ["#### 1"], 4), ("all", ["long one #### 1", "#### 1"], 4)],
)
def test_which_answers_are_kept(tmp_path, keep, kept, requests):
    said = {0: "wrong #### 7", 1: "long one #### 1", 2: "#### 1", 3: "#### 1"}

    def respond(request, number):
        text = said[request["seed"]]
        return chat(text, tokens=len(text))

    with serving(respond) as server:
        collect(server, tmp_path / "t.jsonl", problems=PROBLEMS[:1], samples=4, keep=keep, concurrency=1)
    (loaded,) = load_problems(tmp_path / "t.jsonl").problems
    assert [trace.text for trace in loaded.traces] == kept
    assert len(server.requests) == requests


def test_what_failed_is_asked_again_and_nothing_else(tmp_path):
    broken = {1, 4}

    def respond(request, number):
        n = asked_for(request)
        return Raw(500) if n in broken else chat(f"#### {n + 1}")

    out = tmp_path / "t.jsonl"
    with serving(respond) as server:
        first = collect(server, out, tries=2)
        assert (first.unanswered, first.solved) == (2, 4)
        assert "asks them again" in " ".join(first.lines(out))
        broken.clear()
        server.requests.clear()
        second = collect(server, out, tries=2)
    assert sorted(asked_for(request) for request in server.requests) == [1, 4]
    assert (second.unanswered, second.solved, second.asked) == (0, 6, 6)


def test_a_server_that_is_gone_ends_it(tmp_path):
    problems = [Problem(f"p{n}", f"What is {n} + 1?", str(n + 1)) for n in range(40)]
    with serving(lambda request, number: Raw(503)) as server, pytest.raises(RunError, match="in a row"):
        collect(server, tmp_path / "t.jsonl", problems=problems, tries=1, concurrency=2)
    assert not (tmp_path / "t.jsonl").exists()


def test_other_settings_are_refused(tmp_path):
    with serving(lambda request, number: chat("#### 1")) as server:
        collect(server, tmp_path / "t.jsonl")
        with pytest.raises(RunError, match=r"temperature: 1\.0 there, 0\.5 now"):
            collect(server, tmp_path / "t.jsonl", overrides=["rollout.temperature=0.5"])


def test_the_key_is_in_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(lambda request, number: chat("#### 1")) as server:
        collect(server, tmp_path / "t.jsonl")
        assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert not any("sk-secret" in file.read_text() for file in tmp_path.iterdir())


def test_killed_at_any_moment_nothing_is_lost_and_nothing_answered_is_asked_again(tmp_path):
    """The command line in a process of its own, killed with SIGKILL again and again."""
    questions, out = tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    rows = [{"id": f"p{n}", "prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(60)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    generator = random.Random(0)

    def respond(request, number):
        time.sleep(0.02)
        return chat(f"#### {asked_for(request) + 1}")

    with serving(respond) as server:
        command = [sys.executable, "-m", "luffy", "data", "collect", str(questions), "--endpoint", server.url]
        command += ["--model", "teacher", "--out", str(out), "--concurrency", "2", "reward.kind=number"]
        command += ["reward.workers=0"]
        environment = os.environ | {"LUFFY_TEST": "1"}
        for _ in range(3):
            before = len(server.requests)
            process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while len(server.requests) == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(generator.uniform(0.0, 0.2))
            process.send_signal(signal.SIGKILL)
            process.wait()
            journal = tmp_path / "t.jsonl.journal"
            answered = {json.loads(line).get("problem") for line in journal.read_text().split("\n")[1:-1]}
            known = {f"p{asked_for(request)}" for request in server.requests}
            assert answered <= known
            server.requests.append({"messages": [{"content": "x x 0"}], "mark": answered})
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    answered = set()
    for request in server.requests:  # after each kill, what was in the journal is not asked again
        if "mark" in request:
            answered |= request["mark"]
        else:
            assert f"p{asked_for(request)}" not in answered
    assert all(problem.traces for problem in load_problems(out).problems)
    assert "60 problems, 60 with a verified trace" in finished.stdout
