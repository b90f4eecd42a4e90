"""The page while a run trains: only this page, only for this machine, new as the run goes on."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from synthetic import write_run

from luffy.errors import RunError
from luffy.report import live_server


def ask(server, path="/", method="GET", host=None):
    connection = http.client.HTTPConnection(*server.server_address, timeout=60)
    connection.putrequest(method, path, skip_host=host is not None)
    if host is not None:
        connection.putheader("Host", host)
    connection.endheaders()
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_the_page_follows_the_run(tmp_path):
    folder = tmp_path / "r"
    with live_server([folder], price=3) as server:
        status, text = ask(server)
        assert status == 200
        assert "Nothing to show yet" in text
        write_run(folder, steps=20, problems=5, until=4, sets=("hard",), status="running", rollouts=False)
        status, text = ask(server)
        assert "running after 4 steps" in text
        assert "dollars at 3 a machine and hour" in text
        assert "connect-src &#39;self&#39;" in text or "connect-src 'self'" in text
        before = json.loads(ask(server, "/version")[1])["version"]
        assert f'"live":"{before}"' in text
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 5, "reward/on_policy": 0.5}) + "\n")
        assert json.loads(ask(server, "/version")[1])["version"] != before
        assert "running after 5 steps" in ask(server)[1]


def version_of(server):
    return json.loads(ask(server, "/version")[1])["version"]


@pytest.mark.parametrize("inside", [".", "luffy/seed-0"])
@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "metrics.jsonl", "evaluations.jsonl"])
def test_every_file_that_the_page_is_made_of_is_watched(tmp_path, inside, name):
    """Of a run and of each run of a comparison; also a change that leaves the size as it was, or takes a file away."""
    run = write_run(tmp_path / inside, steps=2, problems=5, sets=("hard",), rollouts=False)
    with live_server([tmp_path]) as server:
        seen = [version_of(server), version_of(server)]
        assert seen[0] == seen[1]
        with (run / name).open("a") as file:
            file.write("\n")
        seen.append(version_of(server))
        moment = (run / name).stat().st_mtime_ns + 1_000_000_000
        os.utime(run / name, ns=(moment, moment))
        seen.append(version_of(server))
        (run / name).unlink()
        assert len({*seen, version_of(server)}) == 4


def test_a_run_that_cannot_be_read_now_is_said_and_looked_at_again(tmp_path):
    run = write_run(tmp_path / "<b>r", steps=2, problems=5, sets=("hard",), rollouts=False)
    with live_server([run]) as server:
        assert "LUFFY on miniature" in ask(server)[1]
        kept = (run / "summary.json").read_text()
        (run / "summary.json").write_text(kept[:20])
        text = ask(server)[1]
        assert "Nothing to show yet" in text
        assert "&lt;b&gt;r/summary.json" in text
        assert "<b>" not in text
        assert '<meta http-equiv="refresh" content="3">' in text
        (run / "summary.json").write_text(kept)
        assert "LUFFY on miniature" in ask(server)[1]


def test_nothing_of_an_answer_is_kept_or_guessed_by_the_browser(tmp_path):
    with live_server([write_run(tmp_path / "r", steps=2, problems=5, sets=("hard",), rollouts=False)]) as server:
        for path in ("/", "/version"):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}", timeout=60) as answer:
                assert (answer.headers["Cache-Control"], answer.headers["X-Content-Type-Options"]) == (
                    "no-store",
                    "nosniff",
                )


def test_nothing_answers_after_the_end(tmp_path):
    with live_server([tmp_path]) as server:
        address = server.server_address
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)
    with live_server([tmp_path], address[1]):  # the port is free again
        pass


@pytest.mark.parametrize(
    "path",
    [
        "/config.yaml",
        "/../config.yaml",
        "/%2e%2e/config.yaml",
        "//etc/passwd",
        "/etc/passwd",
        "/?x",
        "/version/..",
        "*",
    ],
)
def test_nothing_else_is_served(tmp_path, path):
    (tmp_path / "config.yaml").write_text("secret: 1\n")
    with live_server([tmp_path]) as server:
        status, text = ask(server, path)
        assert status == 404
        assert "secret" not in text


def test_only_this_machine_by_its_own_name(tmp_path):
    with live_server([tmp_path]) as server:
        host, port = server.server_address
        assert host == "127.0.0.1"
        for name in ("evil.example", f"evil.example:{port}", "127.0.0.1", ""):
            assert ask(server, host=name)[0] == 403, name
        assert ask(server, host=f"localhost:{port}")[0] == 200
        assert ask(server, method="POST")[0] == 501


def test_a_taken_port_is_a_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = rf"port {port} of 127\.0\.0\.1 cannot be used .*Choose another --port"
        with pytest.raises(RunError, match=sentence), live_server([tmp_path], port):
            pass


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(tmp_path):
    run = write_run(tmp_path / "r", steps=4, problems=5, sets=("hard",), rollouts=False)
    command = [sys.executable, "-m", "luffy", "report", "--live", str(run), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert "LUFFY on miniature" in answer.read().decode()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    assert not (run / "report.html").exists()
