"""An adapter that goes to vLLM by itself (`rollout.vllm.lora`): `make test-vllm`."""

import copy

import pytest
import torch

from luffy import load_config, train
from luffy.config import AdapterConfig, Config
from luffy.errors import ConfigError, EngineLostError
from luffy.policy import LoadedModel
from luffy.rollout import Sampling
from luffy.rollout.vllm_launch import LaunchedServer, serve_command
from luffy.rollout.vllm_settings import model_settings, named_weights
from small_engines import EOS, PROMPTS, RANK, TOLERANCE, build_policy, gap, needs_vllm, open_vllm, vllm_config
from small_runs import SMALL, lines

SAMPLING = Sampling(20, seed=3)


def adapted(seed=None, policy=None):
    """The policy with an adapter: one that changes nothing yet, or a random one."""
    pytest.importorskip("peft")
    from luffy.policy.adapters import add_adapter

    policy = policy or build_policy()
    add_adapter(policy, AdapterConfig(rank=RANK), seed=0)
    return policy if seed is None else changed(policy, seed)


def changed(policy, seed, only=""):
    """A copy whose adapter's second halves are random. only: those with this in their name."""
    other = copy.deepcopy(policy)
    for name, weight in other.named_parameters():
        if "lora_B" in name and only in name:
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(seed))
    return other


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rollout": {"vllm": {"lora": True}}}, r"set adapter.rank, or leave it out"),
        (
            {"rollout": {"vllm": {"lora": True}}, "adapter": {"rank": 4}, "parallel": {"sharding": "full"}},
            "an adapter that is whole in one process",
        ),
        ({"rollout": {"vllm": {"lora": True}}, "adapter": {"rank": 513}}, "rank 512 at most, adapter.rank is 513"),
    ],
)
def test_settings_that_do_not_go_together(settings, said):
    with pytest.raises(ValueError, match=said):
        model_settings(Config.model_validate(settings), LoadedModel(build_policy(), None, EOS, 0))


def test_a_server_by_hand_is_told_of_adapters(tmp_path):
    config = vllm_config(tmp_path, build_policy(), "vllm_server", lora=True)
    command = serve_command("m", model_settings(config, LoadedModel(build_policy(), None, EOS, 0)))
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 " in command
    assert "--enable-lora --max-loras 1 --max-lora-rank 8" in command


@pytest.fixture(scope="module", params=["vllm", "vllm_server"])
def engine(request, tmp_path_factory):
    """The folder's base is another one, as it is where the policy's is quantised."""
    folder = tmp_path_factory.mktemp("policy")
    engine = open_vllm(folder, adapted(), request.param, stored=build_policy(9), lora=True)
    yield engine
    engine.close()


@needs_vllm
def test_logprobs_are_the_trainers_after_each_update(engine):
    policy = adapted()
    engine.update_weights(policy)
    assert gap(engine, policy, SAMPLING) < TOLERANCE
    assert gap(engine, build_policy(), SAMPLING) < TOLERANCE  # it changes nothing yet
    before = build_policy()
    for seed in range(3):
        policy = adapted(seed)
        engine.update_weights(policy)
        assert gap(engine, policy, SAMPLING) < TOLERANCE
        assert gap(engine, before, SAMPLING) > 10 * TOLERANCE  # neither the base's nor the adapter's before
        before = policy


@needs_vllm
def test_every_layer_of_the_adapter_arrives(engine):
    policy = adapted()
    for name in [name for name, _ in policy.named_parameters() if "lora_B" in name]:
        other = changed(policy, 1, only=name)
        engine.update_weights(other)
        assert gap(engine, other, SAMPLING) < TOLERANCE, name
        assert gap(engine, policy, SAMPLING) > 10 * TOLERANCE, name


@needs_vllm
def test_a_long_prompt_that_was_seen_before_is_read_anew(tmp_path):
    """What vLLM keeps of a prompt, in blocks of many tokens, goes by the adapter's name."""
    base = build_policy(context=512)
    engine = open_vllm(tmp_path, adapted(policy=copy.deepcopy(base)), stored=base, lora=True)
    prompt = [3 + (7 * place) % 27 for place in range(400)]
    for seed in (1, 2):
        policy = adapted(seed, copy.deepcopy(base))
        engine.update_weights(policy)
        once, again = (engine.generate([prompt], 2, Sampling(4, seed=5)) for _ in range(2))
        assert once == again
        first = once[0][0]
        expected = policy(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[first.token_ids[0]]
        assert first.logprobs[0] == pytest.approx(expected.item(), abs=TOLERANCE)
    engine.close()


class Served:
    """A server that runs by itself and takes adapters, which began with other weights than the policy's."""

    def __init__(self, folder):
        self.config = vllm_config(folder, build_policy(9), "vllm_server", lora=True)
        self.folder = folder
        self.start()

    def start(self, port=None):
        settings = model_settings(self.config, LoadedModel(build_policy(), None, EOS, 0))
        self.process = LaunchedServer(self.config.model, settings, self.folder / "vllm.log", port=port)
        self.given = {"server": self.process.url, "lora": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    one = Served(tmp_path_factory.mktemp("served"))
    yield one
    one.process.close()


@needs_vllm
def test_a_server_gets_the_base_once_and_then_the_adapter_alone(served, tmp_path):
    engine = open_vllm(tmp_path, adapted(1), "vllm_server", stored=build_policy(9), **served.given)
    assert gap(engine, adapted(1), SAMPLING) < TOLERANCE
    posted = []
    engine._server._http.event_hooks["request"].append(lambda request: posted.append(request.url.path))
    engine.update_weights(adapted(2))
    assert posted == ["/weight_info", "/v1/load_lora_adapter", "/update_weight_version", "/v1/unload_lora_adapter"]
    assert gap(engine, adapted(2), SAMPLING) < TOLERANCE
    assert [path.name for path in engine._buckets.folder.glob("adapter-*")] == ["adapter-1"]
    engine.close()


@needs_vllm
def test_another_run_on_the_same_server_is_noticed_by_the_first(served, tmp_path):
    first = open_vllm(tmp_path, adapted(1), "vllm_server", stored=build_policy(9), **served.given)
    (tmp_path / "second").mkdir()
    second = open_vllm(
        tmp_path / "second", adapted(2, build_policy(4)), "vllm_server", stored=build_policy(9), **served.given
    )
    assert gap(second, adapted(2, build_policy(4)), SAMPLING) < TOLERANCE
    with pytest.raises(EngineLostError, match="the weights of another run"):
        first.generate(PROMPTS, 1, SAMPLING)
    first.close()
    second.close()


@needs_vllm
def test_a_server_that_is_started_anew_gets_base_and_adapter_again(served, tmp_path):
    engine = open_vllm(tmp_path, adapted(1), "vllm_server", stored=build_policy(9), **served.given)
    engine.update_weights(adapted(2))
    served.process.close()
    served.start(port=int(served.process.url.rpartition(":")[2]))
    assert gap(engine, adapted(2), SAMPLING) < TOLERANCE
    engine.update_weights(adapted(3))
    assert gap(engine, adapted(3), SAMPLING) < TOLERANCE
    engine.close()


@needs_vllm
def test_weights_merged_go_to_a_server_that_takes_adapters_as_well(served, tmp_path):
    engine = open_vllm(tmp_path, build_policy(7), "vllm_server", server=served.process.url)
    engine.update_weights(adapted(2))
    assert gap(engine, adapted(2), SAMPLING) < TOLERANCE
    engine.close()


@needs_vllm
def test_a_server_without_adapters_is_refused(tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    config = vllm_config(folder, build_policy(), "vllm_server")
    settings = model_settings(config, LoadedModel(build_policy(), None, EOS, 0))
    process = LaunchedServer(config.model, settings, folder / "vllm.log")
    with pytest.raises(ConfigError, match=r"without /v1/load_lora_adapter.*--enable-lora"):
        open_vllm(tmp_path, adapted(), "vllm_server", stored=build_policy(9), server=process.url, lora=True)
    process.close()


@needs_vllm
def test_far_fewer_bytes_travel(served, tmp_path):
    engine = open_vllm(tmp_path, adapted(1), "vllm_server", stored=build_policy(9), **served.given)
    sent = sum(path.stat().st_size for path in engine._buckets.folder.glob("adapter-0/*.safetensors"))
    adapter = sum(weight.nbytes for name, weight in adapted().named_parameters() if "lora_" in name)
    assert adapter < sent < adapter + 8000  # names
    assert sent < sum(weight.nbytes for _, weight in named_weights(build_policy()))
    engine.close()


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("engine", ["vllm", "vllm_server"])
def test_a_run_generates_with_its_newest_adapter_and_goes_on(engine, tmp_path):
    pytest.importorskip("peft")
    given = SMALL | {"rollout.engine": engine, "rollout.vllm.eager": True, "rollout.vllm.cache_gib": 0.25}
    given |= {"rollout.vllm.lora": True, "adapter.rank": 4, "checkpoint_every": 1, "output": str(tmp_path)}

    def cut(step, steps, metrics):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(load_config(overrides=given), on_step=cut)
    train(load_config(overrides=given))
    gaps = [line["policy/engine_gap"] for line in lines(tmp_path / "metrics.jsonl")]
    assert len(gaps) == 4
    assert max(gaps) < 1e-4


@pytest.mark.slow
@needs_vllm
@pytest.mark.parametrize("lora", [False, True])
def test_a_base_in_4_bits_is_what_vllm_generates_with(lora, tmp_path):
    """From the first step on, while the folder holds the base as it was before."""
    pytest.importorskip("peft")
    pytest.importorskip("bitsandbytes")
    given = SMALL | {"rollout.engine": "vllm", "rollout.vllm.eager": True, "rollout.vllm.cache_gib": 0.25, "steps": 2}
    given |= {"adapter.rank": 4, "adapter.quantize": "nf4", "rollout.vllm.lora": lora, "output": str(tmp_path)}
    train(load_config(overrides=given))
    assert max(line["policy/engine_gap"] for line in lines(tmp_path / "metrics.jsonl")) < 1e-4
