"""What the plan says of the stages of DeepSpeed's ZeRO."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from luffy import load_config
from luffy.cli import application
from luffy.planning import zero as planned
from luffy.planning.devices import find_device
from luffy.planning.estimate import make_plan
from luffy.planning.remedies import find_adapter, find_remedies
from luffy.planning.shape import read_shape
from luffy.training import zero as trained

SEVEN = "Qwen/Qwen2.5-7B-Instruct"
GPU = find_device("A100-80")


def plan(sharding, devices=8, **given):
    settings = {"model": SEVEN, "policy.autocast": "none", "parallel.sharding": sharding} | {
        f"parallel.{key}": one for key, one in given.items()
    }
    return make_plan(load_config(None, settings), GPU, devices)


def test_each_stage_splits_more_than_the_one_before():
    """In bytes a parameter, of eight devices: four are a weight, four a gradient, eight its moments."""
    count = read_shape(SEVEN).parameters
    kept = {one: plan(one).memory[one] for one in ("zero1", "zero2", "zero3")}
    of_each = {
        one: tuple(round(part / count, 3) for part in (memory.weights, memory.gradients, memory.optimizer))
        for one, memory in kept.items()
    }
    assert of_each == {"zero1": (4.5, 4, 1), "zero2": (4.5, 0.5, 1), "zero3": (1, 0.5, 1)}
    assert kept["zero3"].engine == 4 * count  # what generates is whole on each device
    assert kept["zero1"].engine == kept["zero2"].engine == 0  # the policy itself generates
    assert kept["zero2"].exchange == 2**28 + 4 * count / 8


def test_offloading_takes_the_optimizer_to_the_host():
    count = read_shape(SEVEN).parameters
    second, third = (plan(one, offload=True).memory[one] for one in ("zero2", "zero3"))
    assert (second.weights, second.gradients, second.optimizer) == (4 * count, 0, 0)
    assert second.host == 4 * 4 * count / 8
    assert (third.weights, third.gradients, third.optimizer) == (0, 0, 0)
    assert third.host == 5 * 4 * count / 8


def test_one_device_splits_nothing_and_other_stages_are_not_shown():
    assert list(plan("zero2", devices=1).memory) == ["ddp"]
    assert list(plan("zero2").memory) == ["ddp", "fsdp", "zero2"]
    assert list(plan("full").memory) == ["ddp", "fsdp"]


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
def test_what_is_proposed_can_be_started(sharding):
    small = make_plan(load_config(None, {"model": SEVEN, "parallel.sharding": sharding}), find_device("A10"), 2)
    for remedy in filter(None, (find_remedies(small), find_adapter(small))):
        keys = [one for one in remedy.settings if "=" in one]
        load_config(None, ["model=" + SEVEN, f"parallel.sharding={sharding}", *keys])  # is not refused


def test_sizes_are_those_that_deepspeed_is_told():
    config = load_config(overrides={"parallel.sharding": "zero3"})
    with torch.device("meta"):
        shape = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        model = LlamaForCausalLM(shape)
    told = trained.engine_settings(config, model)["zero_optimization"]  # in numbers of float32
    assert 4 * told["reduce_bucket_size"] == planned.BUCKET
    assert planned.GATHERED == 4 * told["stage3_max_live_parameters"] == 4 * told["stage3_max_reuse_distance"]


def test_the_command_shows_the_stage(tmp_path):
    (tmp_path / "zero.yaml").write_text(f"model: {SEVEN}\nparallel: {{sharding: zero2, offload: true}}\n")
    given = ["plan", str(tmp_path / "zero.yaml"), "--gpu", "A100-80", "--gpus", "8"]
    assert "zero2, offloaded" in " ".join(CliRunner().invoke(application, given).stdout.split())
