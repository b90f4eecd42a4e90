"""What is particular to a vLLM server: the wrong ones, those that die or stall, other runs, its own process."""

import copy
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from luffy import load_config, train
from luffy.config import Config
from luffy.errors import ConfigError, EngineLostError, ModelError, RunError
from luffy.policy import LoadedModel
from luffy.rollout import Sampling
from luffy.rollout.vllm_buckets import Buckets
from luffy.rollout.vllm_launch import LaunchedServer, serve_arguments
from luffy.rollout.vllm_server import VllmServerEngine
from luffy.rollout.vllm_settings import exhausting, model_settings, named_weights
from luffy.training.world import World
from small_engines import EOS, HAS_VLLM, PROMPTS, TOLERANCE, build_policy, gap, needs_vllm, open_vllm, vllm_config

SAMPLING = Sampling(20, seed=3)


def test_the_arguments_of_vllm_serve():
    arguments = serve_arguments("m", {"max_model_len": 7, "enforce_eager": True, "enable_sleep_mode": False, "seed": 0})
    assert arguments[0] == "m"
    assert '{"backend": "luffy"}' in arguments
    assert arguments[-5:] == ["--max-model-len", "7", "--enforce-eager", "--seed", "0"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"engine": "vllm", "vllm": {"server": "http://x"}}, "is the address for rollout.engine=vllm_server"),
        ({"engine": "vllm_server", "vllm": {"sleep": True}}, "no time to sleep"),
        ({"engine": "vllm_server", "dtype": "float64"}, "has no float64"),
    ],
)
def test_settings_that_do_not_go_together(settings, said):
    with pytest.raises(ValueError, match=said):
        Config.model_validate({"rollout": settings})


def test_buckets_hold_every_weight_once_within_their_size(tmp_path):
    weights = {f"w{n}": torch.full((2**17,), float(n)) for n in range(5)} | {"large": torch.zeros(2**19)}  # 0.5, 2 MiB
    buckets = Buckets(str(tmp_path), 1, "float32")
    buckets.write(weights.items())
    files = [load_file(buckets.folder / name) for name in buckets.files]
    assert [sorted(file) for file in files] == [["w0", "w1"], ["w2", "w3"], ["w4"], ["large"]]
    assert all(torch.equal(weights[name], file[name]) for file in files for name in file)
    buckets.write({"w": torch.ones(3)}.items())
    assert [path.name for path in buckets.folder.iterdir()] == buckets.files == ["00000.safetensors"]
    buckets.remove()
    assert not list(tmp_path.iterdir())


def test_tied_weights_travel_once():
    assert "lm_head.weight" not in dict(named_weights(build_policy()))
    assert len(dict(named_weights(build_policy()))) == len(list(build_policy().parameters()))


def test_an_update_that_fails_asks_for_all_weights_still(tmp_path):
    """Or the processes that gather them with this one would wait for it."""
    weights, buckets = named_weights(build_policy()), Buckets(str(tmp_path), 1, "float32")
    buckets._limit = 20_000
    buckets.folder.rmdir()
    with pytest.raises(RunError, match=r"cannot be written.*rollout.vllm.exchange names"), exhausting(weights):
        buckets.write(weights)
    assert list(weights) == []


def test_a_folder_for_weights_that_is_none(tmp_path):
    with pytest.raises(RunError, match=r"rollout.vllm.exchange: no folder"):
        Buckets(str(tmp_path / "absent"), 1, "float32")


@contextmanager
def listening(handler=None):
    """A server that is not vLLM; without a handler one that takes connections and says nothing."""
    if handler:
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_is_not_vllm(tmp_path):
    with listening(SimpleHTTPRequestHandler) as url, pytest.raises(ModelError, match=r"no vLLM server.*vllm serve"):
        open_vllm(tmp_path, build_policy(), "vllm_server", server=url)


def test_a_server_that_says_nothing_is_not_waited_for_longer_than_the_patience(tmp_path):
    began = time.monotonic()
    with listening() as url, pytest.raises(EngineLostError, match="no answer within 1 s"):
        open_vllm(tmp_path, build_policy(), "vllm_server", server=url, patience=1)
    assert time.monotonic() - began < 20


def test_nobody_at_the_address(tmp_path):
    with listening() as url:
        pass
    with pytest.raises(EngineLostError, match=r"rollout.vllm.patience=1\); the last try: .*no connection"):
        open_vllm(tmp_path, build_policy(), "vllm_server", server=url, patience=1)


def test_an_address_that_is_none(tmp_path):
    with pytest.raises(ConfigError, match="expected the address of a vLLM server"):
        open_vllm(tmp_path, build_policy(), "vllm_server", server="localhost:8000")


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_that_vllm_is_missing_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"rollout.engine=vllm_server needs the package vllm: pip install vllm"):
        open_vllm(tmp_path, build_policy(), "vllm_server")


class Served:
    """A server that runs by itself, as one started by hand does."""

    def __init__(self, folder):
        self.policy = build_policy()
        self.config = vllm_config(folder, self.policy, "vllm_server")
        self.folder, self.log = folder, folder / "vllm.log"
        self.settings = model_settings(self.config, LoadedModel(self.policy, None, EOS, 0))
        self.start()

    def start(self, port=None):
        self.process = LaunchedServer(self.config.model, self.settings, self.log, port=port)
        self.url = self.process.url

    def open(self, policy, name="other", **of_vllm):
        (self.folder / name).mkdir(exist_ok=True)
        return open_vllm(self.folder / name, policy, "vllm_server", server=self.url, **of_vllm)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    one = Served(tmp_path_factory.mktemp("served"))
    yield one
    one.process.close()


def other_policy(**changes):
    policy = build_policy()
    config = copy.deepcopy(policy.config)
    for name, value in changes.items():
        setattr(config, name, value)
    if "num_hidden_layers" in changes:
        config.layer_types = None
    torch.manual_seed(0)
    return type(policy)(config).eval()


@needs_vllm
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 1}, "weights of vLLM's model did not come"),
        ({"num_hidden_layers": 3}, "failed 3 times"),
        ({"intermediate_size": 64}, "failed 3 times"),
    ],
)
def test_a_server_of_another_model_is_refused_and_serves_its_own_afterwards(served, changes, said):
    with pytest.raises(EngineLostError, match=said):
        served.open(other_policy(**changes))
    engine = served.open(build_policy(7), "same")
    assert gap(engine, build_policy(7), SAMPLING) < TOLERANCE
    engine.close()


@needs_vllm
@pytest.mark.parametrize(
    ("settings", "said"), [({"temperature": 0.5}, "gives raw_logprobs"), ({"max_length": 65}, "takes 64 tokens")]
)
def test_a_server_started_with_other_settings_is_refused(served, monkeypatch, settings, said):
    if "max_length" in settings:
        monkeypatch.setattr("luffy.rollout.vllm_settings.context_of", lambda model: None)
    with pytest.raises(ConfigError, match=rf"{said}.*vllm serve"):
        served.open(build_policy(), **settings)


@needs_vllm
def test_an_update_that_was_broken_off_leaves_nothing_behind(served):
    """A run that was killed in the middle of an update: some weights have come, the update has not ended."""
    engine = served.open(build_policy(1), bucket_mib=1)
    engine._buckets._limit = 20_000
    engine._buckets.write(named_weights(build_policy(2)))
    server, files = engine._server, engine._buckets.files
    assert len(files) > 3
    server.post("/init_weight_transfer_engine", {"init_info": {"folder": str(engine._buckets.folder)}})
    server.post("/start_weight_update")
    for file in files[:2]:
        server.post("/update_weights", {"update_info": {"file": file}})
    after = served.open(build_policy(3), "after")
    assert gap(after, build_policy(3), SAMPLING) < TOLERANCE
    with pytest.raises(EngineLostError, match="the weights of another run"):
        engine.generate(PROMPTS, 1, SAMPLING)
    engine.close()
    after.close()


@needs_vllm
def test_several_buckets_and_a_file_outside_the_folder(served):
    engine = served.open(build_policy())
    engine._buckets._limit = 20_000
    engine.update_weights(build_policy(4))
    assert len(engine._buckets.files) > 3
    assert gap(engine, build_policy(4), SAMPLING) < TOLERANCE
    engine._server.post("/start_weight_update")
    with pytest.raises(Exception, match="no file of the agreed folder"):
        engine._server.post("/update_weights", {"update_info": {"file": "../weights.safetensors"}})
    engine.close()


@needs_vllm
def test_more_completions_than_the_server_decodes_at_once_are_the_same_completions(served):
    engine = served.open(build_policy())
    whole = engine.generate(PROMPTS, 6, SAMPLING)
    engine._most_at_once = 4
    assert engine.generate(PROMPTS, 6, SAMPLING) == whole
    engine.close()
    with pytest.raises(RunError, match="is closed"):
        engine.generate(PROMPTS, 1, SAMPLING)


@needs_vllm
def test_a_server_that_dies_while_it_generates_and_comes_back_gets_the_weights_again(served):
    engine = served.open(build_policy(5), patience=900)
    expected = engine.generate(PROMPTS, 4, SAMPLING)
    found = []
    asking = threading.Thread(target=lambda: found.append([engine.generate(PROMPTS, 4, SAMPLING) for _ in range(10)]))
    asking.start()
    time.sleep(0.2)
    served.process.close()
    served.start(port=int(served.url.rpartition(":")[2]))
    asking.join(900)
    assert found == [[expected] * 10]
    engine.close()


@needs_vllm
def test_of_two_processes_that_find_a_server_started_anew_one_gives_it_the_weights(served, tmp_path, monkeypatch):
    kept = dist.TCPStore("127.0.0.1", 0, is_master=True)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(kept.port))
    turns = [partial(World(rank, 2).turn, "weights") for rank in range(2)]
    policy = build_policy(5)
    config, loaded = vllm_config(tmp_path, policy, "vllm_server", server=served.url), LoadedModel(policy, None, EOS, 0)
    first = VllmServerEngine(config, loaded, turn=turns[0])
    second = VllmServerEngine(config, loaded, opened=first.opened, turn=turns[1])
    expected = first.generate(PROMPTS, 4, SAMPLING)
    served.process.close()
    served.start(port=int(served.url.rpartition(":")[2]))
    first._server.persist("waiting for the server", lambda: first._server.get("/version"), longest=1.0)
    pushed, found = [], []
    for engine in (first, second):
        engine._server._http.event_hooks["request"].append(lambda request: pushed.append(request.url.path))
    asking = [
        threading.Thread(target=lambda one=one: found.append(one.generate(PROMPTS, 4, SAMPLING)))
        for one in (first, second)
    ]
    for one in asking:
        one.start()
    for one in asking:
        one.join(900)
    assert found == [expected] * 2
    assert pushed.count("/start_weight_update") == 1
    first.close()
    second.close()


@needs_vllm
@pytest.mark.slow
def test_a_run_whose_server_dies_leaves_a_checkpoint_and_goes_on_from_it(tmp_path):
    given = {
        "output": str(tmp_path),
        "steps": 4,
        "rollout.engine": "vllm_server",
        "rollout.vllm.eager": True,
        "rollout.vllm.cache_gib": 0.25,
        "evaluation.benchmarks": [],
        "evaluation.watch": [],
    }
    config = load_config("recipes/miniature.yaml", given)

    def kill(step, steps, metrics):
        if step == 2:
            (server,) = _children("luffy.rollout.vllm_child .*miniature")
            os.killpg(server, signal.SIGKILL)

    with pytest.raises(RunError, match=r"has ended with status -9.*vllm\.log.*step-0*2"):
        train(config, on_step=kill)
    steps = []
    summary = train(config, on_step=lambda step, *_: steps.append(step))
    assert (summary.status, summary.steps, steps) == ("finished", 4, [3, 4])
    assert not _children("luffy.rollout.vllm_child .*miniature")


@needs_vllm
def test_a_server_does_not_outlive_a_run_that_is_killed(served, tmp_path):
    start = (
        "import sys, time; from pathlib import Path; from luffy.rollout.vllm_launch import LaunchedServer;"
        "print(LaunchedServer(sys.argv[1], {}, Path(sys.argv[2]))._process.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", start, served.config.model, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        server = int(run.stdout.readline())
        time.sleep(1)
        os.kill(server, 0)  # it lives
        run.kill()
    deadline = time.monotonic() + 60
    while _lives(server) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _lives(server)


def _children(module):
    """Process ids of this process's children that run a module."""
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", module], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def _lives(process):
    try:
        with open(f"/proc/{process}/stat") as stat:
            return stat.read().split()[2] != "Z"
    except OSError:
        return False
