"""The arithmetic of `luffy plan`: against numbers worked out by hand, and against what torch counts."""

import gc
import json
from dataclasses import asdict, replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from typer.testing import CliRunner

from kept_tensors import kept_bytes
from luffy.cli import application
from luffy.config import load_config
from luffy.errors import ConfigError, ModelError
from luffy.planning import estimate_memory, find_device, find_remedies, make_plan, read_shape
from luffy.planning.devices import Device, read_device, this_machine
from luffy.planning.measure import measure_machine
from luffy.planning.memory import kept_a_token, logit_bytes, micro_batch_tokens, rollouts_a_problem
from luffy.planning.shape import KNOWN, shape_of
from luffy.planning.work import ADAPTED_CALL, Lengths, count_work, time_step
from luffy.policy import split_packed
from luffy.rollout.lean import LeanForward
from tiny_models import SHAPE

FLOAT32 = 4  # bytes of a number
GPT2 = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=64)


def models():
    return {
        "llama": LlamaForCausalLM(LlamaConfig(**SHAPE)),
        "qwen": Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
        "gpt2": GPT2LMHeadModel(GPT2),
    }


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2"])
def test_parameters_are_those_of_the_model(kind):
    model = models()[kind]
    assert shape_of(model.config.to_dict()).parameters == sum(one.numel() for one in model.parameters())


def test_the_published_sizes():
    millions = {name: round(shape_of(config).parameters / 1e6) for name, config in KNOWN.items()}
    assert millions["Qwen/Qwen2.5-Math-7B"] == 7616
    assert millions["Qwen/Qwen2.5-Math-1.5B"] == 1544
    assert millions["Qwen/Qwen2.5-0.5B-Instruct"] == 494
    assert millions["meta-llama/Llama-3.1-8B"] == 8030


@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2"])
def test_a_layer_keeps_as_many_numbers_as_torch_keeps(kind):
    tokens, counts = 48, {}
    for layers in (1, 3):
        torch.manual_seed(0)
        model = models()[kind]
        config = model.config
        config.num_hidden_layers = layers
        if hasattr(config, "layer_types") and config.layer_types:
            config.layer_types = config.layer_types[:1] * layers
        counts[layers] = kept_bytes(type(model)(config).eval(), tokens) / FLOAT32
    measured = (counts[3] - counts[1]) / 2 / tokens
    assert kept_a_token(shape_of(config.to_dict())) == pytest.approx(measured, rel=0.1)


def test_micro_batches_are_those_of_the_update():
    prompts, completions = [3, 5], [[4, 9, 2], [7, 7, 20]]
    groups = list(enumerate(zip(prompts, completions, strict=True)))
    rows = [([number] * prompt, [1] * length) for number, (prompt, group) in groups for length in group]
    for budget in (10, 16, 30, 100):
        batches = split_packed([prompt for prompt, _ in rows], [one for _, one in rows], budget)
        assert micro_batch_tokens(prompts, completions, budget) == [batch.computed for batch in batches]


def test_what_stays_is_sixteen_bytes_a_parameter_and_sharding_divides_it():
    shape, config = read_shape("miniature"), load_config(None, {"objective.kl_coefficient": 0.1})
    one, eight = (estimate_memory(shape, config, devices=n, strategy="fsdp") for n in (1, 8))
    assert one.weights + one.gradients + one.optimizer == 16 * shape.parameters
    assert one.reference == 4 * shape.parameters
    assert eight.weights * 8 == one.weights
    assert eight.engine == 4 * shape.parameters  # what generates is whole on each device
    assert estimate_memory(shape, config, devices=2).exchange == 4 * shape.parameters  # the buckets of DDP


def test_checkpointing_lowers_activations_alone():
    shape = read_shape("Qwen/Qwen2.5-0.5B-Instruct")
    plain, less = (
        estimate_memory(shape, load_config(None, {"policy.gradient_checkpointing": on})) for on in (False, True)
    )
    assert less.activations < plain.activations / 5
    assert asdict(less) | {"activations": 0} == asdict(plain) | {"activations": 0}


def test_operations_of_a_step_by_hand():
    shape = read_shape("miniature")
    config = load_config(None, {"method": "on_policy", "problems_per_step": 2, "rollout.group_size": 3})
    work = count_work(shape, config, Lengths(10, 20, 0, ""))
    body, head = 3 * shape.layer_parameters, 24 * 128
    assert (work.generated, work.prompts, work.trained_traces) == (120, 20, 0)
    attention = 4 * 3 * 128 * 120 * 10
    assert work.update_flops == 3 * (2 * body * 140 + attention) + 6 * head * 120


def test_remedies_make_it_fit():
    config = load_config(None, {"model": "Qwen/Qwen2.5-Math-7B", "policy.token_budget": 32768})
    plan = make_plan(config, find_device("a100-80"), 8)
    assert not plan.ok
    remedy = find_remedies(plan)
    assert remedy is not None
    given = [one for one in remedy.settings if "=" in one and not one.startswith("parallel")]
    changed = load_config(None, ["model=Qwen/Qwen2.5-Math-7B", "policy.token_budget=32768", *given])
    devices = next((int(one.split()[1]) for one in remedy.settings if one.startswith("--gpus")), 8)
    assert make_plan(changed, plan.device, devices).ok


def test_nothing_helps_where_the_weights_alone_are_too_large_for_this_machine():
    config = load_config(None, {"model": "Qwen/Qwen2.5-Math-7B"})
    device = find_device("A10")
    assert find_remedies(make_plan(config, device, 1)) is None


def test_command_says_whether_it_fits(tmp_path):
    fits = CliRunner().invoke(application, ["plan", "recipes/miniature.yaml", "--json"])
    assert fits.exit_code == 0, fits.output
    assert json.loads(fits.stdout)["fits"] is True
    recipe = tmp_path / "large.yaml"
    recipe.write_text("model: meta-llama/Llama-3.1-8B\n")
    refused = CliRunner().invoke(application, ["plan", str(recipe), "--gpu", "A100-80", "--price", "1"])
    assert refused.exit_code == 1
    assert "It does not fit; it does with" in refused.stdout


def test_unknown_devices_and_models_are_named():
    with pytest.raises(ConfigError, match="Did you mean 'A100-80'"):
        find_device("A100-8")
    with pytest.raises(ModelError, match="names no 'hidden_size'"):
        shape_of({"num_attention_heads": 2}, "odd")
    result = CliRunner().invoke(application, ["plan", "recipes/miniature.yaml", "--gpus", "8"])
    assert isinstance(result.exception, ConfigError)


def test_gradients_of_earlier_micro_batches_stay_while_activations_come_and_go():
    shape, config = read_shape("miniature"), load_config(None)
    one = estimate_memory(shape, config, micro_batches=(3000,))
    two = estimate_memory(shape, config, micro_batches=(3000, 3000))
    assert one.update == one.activations + one.logits > one.gradients
    assert two.update == one.update + one.gradients


def test_logits_of_chunks_by_hand():
    shape = read_shape("miniature")
    size, head = shape.vocabulary * 4, shape.head_parameters * 4
    assert logit_bytes(shape, 10, 100 * shape.vocabulary, 4) == 2 * 10 * size + head
    assert logit_bytes(shape, 150, 100 * shape.vocabulary, 4) == max(2 * 100 * size + head, 2 * 50 * size + 2 * head)
    assert logit_bytes(shape, 10, 100 * shape.vocabulary, 4, 2) == 10 * size + 1.5 * head


def test_seconds_of_a_step_by_hand():
    shape = read_shape("miniature")
    config = load_config(None, {"method": "on_policy", "problems_per_step": 2, "rollout.group_size": 3})
    lengths = Lengths(10, 20, 0, "", longest=30)
    device = Device("a", 1e9, flops=1e6, bandwidth=1e6, utilisation=0.5, decode_utilisation=0.25, call=0, token=2.0)
    work = count_work(shape, config, lengths)
    seconds = time_step(shape, config, lengths, work, device, 1)
    assert seconds.update == pytest.approx(work.update_flops / 0.5e6)
    assert seconds.optimizer == pytest.approx(40 * shape.parameters / 1e6)
    decode = 4 * shape.parameters / 0.25e6 + 2 * shape.parameters * 4 / 0.5e6  # six rows, of which four on average
    cache = 2 * 3 * 128 * 4 * 20 * 4 / 0.25e6
    prefill = 2 * 3 * shape.layer_parameters * 20 / 0.5e6
    assert seconds.generation == pytest.approx(30 * (decode + cache + 2.0) + prefill)


def test_measured_rates_are_kept_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr("luffy.planning.measure.REPEATS", 1)
    monkeypatch.setattr("luffy.planning.measure.LENGTH", 8)
    file = tmp_path / "rates.json"
    assert "GFLOP/s" in measure_machine(file)
    device = read_device(file)
    assert device.source == "measured"
    assert min(device.flops, device.bandwidth, device.decode_utilisation, device.draw) > 0


def test_a_machine_that_was_not_measured_is_taken_for_a_laptop(tmp_path):
    config = load_config("recipes/miniature.yaml")
    seconds = make_plan(config, this_machine(tmp_path / "none.json")).seconds
    assert 0.1 < seconds.generation < 10  # a step of the miniature takes about a second
    assert 0.01 < seconds.update < 10


def test_what_the_plan_copies_of_the_engine_so_as_to_need_no_torch():
    from luffy.planning import memory, shape
    from luffy.rollout import cache, lean, packed_linear

    assert (memory.LEAST_ELEMENTS, memory.LARGEST_COPY) == (packed_linear.LEAST_ELEMENTS, packed_linear.LARGEST_COPY)
    assert (memory.BLOCK, shape.LEAN) == (cache.BLOCK, lean.ARCHITECTURES)


def bytes_joined(model):
    """What a lean decoder holds beside the model's own weights."""
    before = {id(one) for one in gc.get_objects() if isinstance(one, torch.Tensor)}
    own = {weight.data_ptr() for weight in model.parameters()}
    decoder = LeanForward(model)
    found = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and id(one) not in before]
    assert decoder
    return sum(one.nbytes for one in found if one.layout != torch.strided or one.data_ptr() not in own)


@pytest.mark.filterwarnings("ignore:.*reduce_op:FutureWarning")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("width", "inner", "vocabulary"), [(32, 64, 64), (256, 768, 512), (256, 8320, 64)])
def test_copies_that_decode_in_few_calls_take_what_torch_takes(width, inner, vocabulary, dtype):
    given = {"hidden_size": width, "intermediate_size": inner, "vocab_size": vocabulary}
    model = LlamaForCausalLM(LlamaConfig(**SHAPE | given)).to(getattr(torch, dtype)).eval()
    planned = estimate_memory(shape_of(model.config.to_dict()), load_config(None, {"policy.dtype": dtype}))
    assert planned.layout == bytes_joined(model)


def test_a_model_that_is_decoded_in_few_calls_takes_their_time():
    lengths, device = Lengths(10, 20, 0, ""), Device("a", 1e9, 1e12, 1e12, call=2.0, lean={"call": 0.5, "token": 0.1})
    llama, other = read_shape("miniature"), replace(read_shape("miniature"), lean=False)

    def planned(shape, **more):
        config = load_config(None, {"method": "on_policy", "problems_per_step": 1} | more)
        work = count_work(shape, config, lengths)
        return time_step(shape, config, lengths, work, device, 1).generation / config.rollout.max_tokens

    assert llama.lean
    assert planned(llama) == pytest.approx(3 * 0.5 + 0.1, rel=1e-3)
    assert planned(other) == pytest.approx(3 * 2.0, rel=1e-3)
    beside = planned(llama, **{"adapter.rank": 4})  # its modules are not the library's: seven with an adapter each
    assert beside == pytest.approx(3 * 2.0 * (1 + 7 * ADAPTED_CALL), rel=1e-3)
    assert planned(llama, **{"adapter.rank": 4, "rollout.dtype": "bfloat16"}) == pytest.approx(1.6, rel=1e-3)  # merged


def test_bfloat16_products_of_a_large_model_take_a_copy_that_generates_and_the_rates_for_them():
    shape, config = read_shape("Qwen/Qwen2.5-0.5B-Instruct"), load_config(None)
    plain, mixed = (estimate_memory(shape, config, units=units) for units in (False, True))
    assert (plain.engine, mixed.engine) == (0, 2 * shape.parameters)
    assert mixed.cache == plain.cache / 2
    assert mixed.layout == plain.layout / 2 > 0  # weights laid out for few rows
    small = read_shape("miniature")
    assert estimate_memory(small, config, units=True) == estimate_memory(small, config)
    device = Device("a", 1e9, flops=1e9, bandwidth=1e9, bfloat16={"flops": 8e9})
    lengths = Lengths(10, 20, 30, "")
    work = count_work(shape, config, lengths)
    faster, slower = (
        time_step(shape, config, lengths, work, one, 1) for one in (device, replace(device, bfloat16=None))
    )
    assert faster.update < slower.update / 4


def test_traces_take_places_only_where_they_join_the_group():
    rows = {
        name: rollouts_a_problem(load_config(None, {"method": name}))
        for name in ("luffy", "on_policy", "rl_sft", "sft")
    }
    assert rows == {"luffy": 7, "on_policy": 8, "rl_sft": 8, "sft": 0}
