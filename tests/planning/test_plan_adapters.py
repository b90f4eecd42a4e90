"""The plan of an adapter, of a base in 4 bits, and of parts on the host: by hand, and against what torch counts."""

from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from kept_tensors import kept_bytes
from luffy.cli import application
from luffy.config import AdapterConfig, PolicyConfig, load_config
from luffy.planning import estimate_memory, find_adapter, find_device, find_remedies, make_plan, read_shape
from luffy.planning.adapter import adapter_parameters, held_bytes, kept_beside_frozen
from luffy.planning.memory import logit_bytes
from luffy.planning.shape import shape_of
from luffy.planning.work import Lengths, count_work
from luffy.policy import load_model
from luffy.policy.adapters import add_adapter
from tiny_models import SHAPE

SEVEN = "Qwen/Qwen2.5-Math-7B"
SETTINGS = {
    "all": {},
    "two": {"adapter.targets": ["q_proj", "v_proj"]},
    "dropped": {"adapter.dropout": 0.1},
}


def adapted(kind, settings, layers):
    config = load_config(None, {"adapter.rank": 4} | settings)
    torch.manual_seed(0)
    if kind == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=layers, n_head=4, n_positions=64))
    else:
        model = LlamaForCausalLM(LlamaConfig(**SHAPE | {"num_hidden_layers": layers}))
    model = model.to(getattr(torch, config.policy.dtype)).eval()
    add_adapter(model, config.adapter, seed=0)
    return model, config


@pytest.mark.parametrize(("kind", "settings"), [("llama", {}), ("llama", SETTINGS["two"]), ("gpt2", {})])
def test_trained_parameters_are_those_of_the_model(kind, settings):
    model, config = adapted(kind, settings, 3)
    trained = sum(one.numel() for one in model.parameters() if one.requires_grad)
    assert adapter_parameters(shape_of(model.config.to_dict()), config) == trained


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("llama", one) for one in SETTINGS.values()] + [("gpt2", {}), ("llama", {"policy.dtype": "bfloat16"})],
    ids=[*SETTINGS, "gpt2", "bfloat16"],
)
def test_a_layer_keeps_as_much_as_torch_keeps(kind, settings):
    tokens, counts = 48, {}
    for layers in (1, 3):
        model, config = adapted(kind, settings, layers)
        counts[layers] = kept_bytes(model.train(), tokens)  # dropout is there in training alone
    measured = (counts[3] - counts[1]) / 2 / tokens
    size = 2 if config.policy.dtype == "bfloat16" else 4
    planned = kept_beside_frozen(shape_of(model.config.to_dict()), config, 1.0, size, mixed=False) * size
    assert planned == pytest.approx(measured, rel=0.1)


def test_gradients_and_moments_are_those_of_the_adapter_alone():
    shape, config = read_shape("miniature"), load_config(None, {"adapter.rank": 8, "objective.kl_coefficient": 0.1})
    memory, trained = estimate_memory(shape, config), 3 * 8 * (4 * (128 + 128) + 3 * (128 + 384))
    assert memory.weights == 4 * (shape.parameters + trained)
    assert (memory.gradients, memory.optimizer) == (4 * trained, 8 * trained)
    assert memory.reference == memory.engine == 0  # the base under the adapter; generation with the adapter in place
    assert estimate_memory(shape, config, devices=2).exchange == 4 * trained
    half = estimate_memory(shape, load_config(None, {"adapter.rank": 8, "policy.dtype": "bfloat16"}))
    assert (half.weights, half.gradients) == (2 * shape.parameters + 4 * trained, 4 * trained)  # adapted in float32
    assert logit_bytes(shape, 10, 100, 4, frozen=True) == 2 * 4 * shape.vocabulary * 4  # the head has no gradient


def test_frozen_parameters_take_four_operations_by_hand():
    shape, settings = read_shape("miniature"), {"method": "on_policy", "problems_per_step": 2, "rollout.group_size": 3}
    lengths = Lengths(10, 20, 0, "")
    body, head, attention = 3 * shape.layer_parameters, 24 * 128, 4 * 3 * 128 * 120 * 10
    beside = adapter_parameters(shape, load_config(None, {"adapter.rank": 8}))
    for recomputed in (False, True):
        given = settings | {"adapter.rank": 8, "policy.gradient_checkpointing": recomputed}
        work = count_work(shape, load_config(None, given), lengths)
        frozen, trained = (6, 4) if recomputed else (4, 3)
        assert work.update_flops == frozen * body * 140 + trained * (2 * beside * 140 + attention) + 4 * head * 120


def test_a_base_in_4_bits_takes_what_bitsandbytes_takes():
    pytest.importorskip("bitsandbytes")
    config = load_config(None, {"adapter.rank": 4, "adapter.quantize": "nf4"})
    model = load_model("miniature", PolicyConfig(), quantize="nf4").model
    tensors = {tensor.untyped_storage().data_ptr(): tensor for tensor in model.state_dict().values()}
    table = 64 + 1024  # bytes of the two tables of values, which each layer holds by itself; of a large one nothing
    layers = 7 * 3
    held = sum(tensor.nbytes for tensor in tensors.values() if tensor.numel() > 256)
    shape = shape_of(model.config.to_dict())
    adapter = 4 * adapter_parameters(shape, config)
    assert held_bytes(shape, config, 4) - adapter == pytest.approx(held, rel=0.01, abs=layers * table)


def test_4_bits_are_not_split_and_a_copy_that_generates_is_plain():
    config = load_config(None, {"model": SEVEN, "adapter.rank": 32, "adapter.quantize": "nf4"})
    plan = make_plan(config, find_device("A100-80"), 8)
    assert list(plan.memory) == ["ddp"]
    assert plan.memory["ddp"].engine == 2 * plan.shape.parameters  # products in bfloat16: a copy in it, dequantised
    half = load_config(None, {"adapter.rank": 32, "adapter.quantize": "nf4", "policy.dtype": "bfloat16"})
    in_place = estimate_memory(plan.shape, half, units=True)
    assert in_place.engine == 0
    assert in_place.layout == 2 * plan.shape.head_parameters  # of the layers none, as they stay in 4 bits


def test_offloading_leaves_what_computes_and_what_generates_on_the_gpu():
    settings = {"model": SEVEN, "parallel.sharding": "full"}
    config, offloaded = (
        load_config(None, settings | more) for more in ({}, {"parallel.offload": True})
    )  # fmt: skip
    plain, parts = (make_plan(one, find_device("A100-80"), 8).memory["fsdp"] for one in (config, offloaded))
    assert parts.kept == parts.engine == plain.engine
    assert parts.host == plain.weights + plain.gradients + plain.optimizer
    assert (parts.exchange, parts.activations, parts.generation) == (
        plain.exchange,
        plain.activations,
        plain.generation,
    )
    one = make_plan(offloaded, find_device("A100-80"), 1)
    assert not one.offloads  # one process has nothing to split


def test_weights_gathered_in_bfloat16_are_computed_and_generated_with_in_it():
    settings = {"model": "miniature", "parallel.sharding": "full"}
    shape = read_shape("miniature")
    plain, less = (
        estimate_memory(shape, load_config(None, settings | {"parallel.param_dtype": one}), devices=2, strategy="fsdp")
        for one in ("none", "bfloat16")
    )
    assert (less.activations, less.exchange, less.engine) == (
        plain.activations / 2,
        plain.exchange / 2,
        plain.engine / 2,
    )
    assert less.weights == plain.weights


def test_vllm_takes_its_share_and_gives_it_back_where_it_sleeps():
    settings = {"model": SEVEN, "rollout.engine": "vllm"}
    device = find_device("A100-80")

    def planned(**more):
        config = load_config(None, settings | {f"rollout.{key.replace('__', '.')}": one for key, one in more.items()})
        return make_plan(config, device, 1).memory["ddp"]

    weights = 2 * read_shape(SEVEN).parameters  # products are bfloat16 there
    assert planned().engine == pytest.approx(0.3 * 80e9)
    assert planned().generation == 0
    assert planned(vllm__cache_gib=4).engine == weights + 4 * 2**30
    asleep = planned(vllm__sleep=True)
    assert (asleep.engine, asleep.generation, asleep.host) == (0, pytest.approx(0.3 * 80e9), weights)
    assert planned(engine="vllm_server", vllm__server="http://elsewhere:8000").engine == 0
    assert planned(engine="vllm_server").engine == planned().engine


def test_sleep_is_proposed_and_a_share_that_is_too_small_is_named(tmp_path):
    config = load_config(
        None, {"model": "Qwen/Qwen2.5-Math-1.5B", "rollout.engine": "vllm", "policy.token_budget": 1024}
    )
    device = replace(find_device("A100-80"), memory=44e9)
    remedy = find_remedies(make_plan(config, device, 1))
    assert remedy is not None
    assert "rollout.vllm.sleep=true" in remedy.settings
    recipe = tmp_path / "large.yaml"
    recipe.write_text(f"model: {SEVEN}\nrollout: {{engine: vllm, vllm: {{memory_share: 0.1}}}}\n")
    said = CliRunner().invoke(application, ["plan", str(recipe), "--gpu", "A100-80"]).stdout
    assert "rollout.vllm.memory_share=0.1 is 8 GB" in said


def test_remedies_name_what_can_be_set_together():
    config = load_config(None, {"model": SEVEN})
    small = find_device("A100-40")
    remedy = find_remedies(make_plan(config, small, 4))
    assert remedy is not None
    assert {"parallel.offload=true", "parallel.sharding=full"} <= set(remedy.settings)
    given = [one for one in remedy.settings if "=" in one]
    devices = next((int(one.split()[1]) for one in remedy.settings if one.startswith("--gpus")), 4)
    assert make_plan(load_config(None, [f"model={SEVEN}", *given]), small, devices).fits("fsdp")


def test_an_adapter_is_proposed_apart_and_with_4_bits_where_it_takes_them():
    device = find_device("A10")
    plan = make_plan(load_config(None, {"model": SEVEN}), device, 1)
    assert find_remedies(plan) is None
    remedy = find_adapter(plan)
    assert remedy is not None
    assert make_plan(load_config(None, [f"model={SEVEN}", *remedy.settings]), device, 1).ok
    assert find_adapter(make_plan(load_config(None, {"model": SEVEN, "adapter.rank": 8}), device, 1)) is None


def test_command_says_what_an_adapter_and_offloading_mean(tmp_path):
    recipe = tmp_path / "large.yaml"
    recipe.write_text(f"model: {SEVEN}\n")

    def said(*given):
        return " ".join(CliRunner().invoke(application, ["plan", str(recipe), *given]).stdout.split())

    four_bits = said("--gpu", "A10", "adapter.rank=32", "adapter.quantize=nf4", "policy.dtype=bfloat16")
    assert "An adapter of 80.74 million parameters is trained; the base is frozen, held in 4 bits" in four_bits
    assert "a matrix out of 4 bits" in four_bits
    offloaded = said("--gpu", "A100-80", "--gpus", "4", "parallel.sharding=full", "parallel.offload=true")
    assert "fsdp, offloaded" in offloaded
    assert "on the host of each process" in offloaded
    assert "parallel.offload moves nothing here" in said(
        "--gpu", "A100-80", "parallel.sharding=full", "parallel.offload=true"
    )
    assert "An adapter in place of all weights, another training, fits with adapter.rank=32" in said("--gpu", "A10")


def test_targets_that_the_plan_does_not_know_count_as_all():
    shape = read_shape("miniature")
    every, odd = (
        load_config(None, {"adapter.rank": 4, "adapter.targets": one}) for one in ([], ["in_proj"])
    )  # fmt: skip
    assert adapter_parameters(shape, odd) == adapter_parameters(shape, every)
    assert AdapterConfig().rank is None
