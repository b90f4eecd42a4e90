"""A base in 4 bits under an adapter: against the same base, dequantised explicitly."""

import gc
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from luffy import ModelError, load_config, train
from luffy.config import AdapterConfig, Config, PolicyConfig
from luffy.policy import Scorer, load_model, model_folder
from luffy.policy.adapters import add_adapter, base_weights, merged_weights, plain_copy
from small_runs import assert_same_run, lines, small, train_interrupted

PROMPTS = [[5, 6, 7, 8], [9, 10]]
COMPLETIONS = [[11, 12, 13], [14, 15, 16, 17, 18]]
NF4 = {"adapter.rank": 4, "adapter.quantize": "nf4"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"adapter": {"quantize": "nf4"}}, r"set adapter.rank, or leave it out"),
        ({"adapter": {"quantize": "nf4", "rank": 4}, "parallel": {"sharding": "full"}}, "packs weights that"),
        ({"adapter": {"quantize": "nf4", "rank": 4}, "parallel": {"sharding": "zero1"}}, "packs weights that"),
    ],
)
def test_settings_that_do_not_go_together(settings, said):
    with pytest.raises(ValueError, match=said):
        Config.model_validate(settings)


def test_that_bitsandbytes_is_missing_is_said(monkeypatch):
    monkeypatch.setattr("luffy.policy.quantization.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'luffy-rl\[qlora\]', or leave adapter.quantize empty"):
        load_model("miniature", PolicyConfig(), quantize="nf4")


def quantized():
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    return load_model("miniature", PolicyConfig(device="cpu"), quantize="nf4").model


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not say what is mapped")
def test_the_file_that_was_packed_is_not_kept_in_memory(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "read-once"
    shutil.copytree(model_folder("miniature"), folder)
    loaded = [load_model(str(folder), PolicyConfig(device="cpu"), quantize=how) for how in (None, "nf4")]
    mapped = "read-once" in Path("/proc/self/maps").read_text()
    assert mapped  # by the plain one, whose weights are the file
    del loaded[0]
    gc.collect()
    assert "read-once" not in Path("/proc/self/maps").read_text()


def adapted(model, targets=()):
    """With a random adapter, the same whatever the base."""
    add_adapter(model, AdapterConfig(rank=4, targets=targets), seed=0)
    for number, (name, weight) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.02
    return model


def loss_and_gradients(model):
    scores = Scorer(model, pad_id=0, chunk_elements=10**6)(PROMPTS, COMPLETIONS, temperature=1.0)
    loss = -scores.logprobs.sum()
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("generated", [False, True])
def test_loss_and_gradient_are_those_of_the_dequantised_base(generated):
    """After something was generated, too: bitsandbytes packs weights anew for that, and then has no gradient."""
    base = quantized()
    explicit = adapted(plain_copy(base))
    if generated:
        with torch.no_grad():
            base(torch.tensor([PROMPTS[0]]))
    (loss, gradients), (expected, theirs) = loss_and_gradients(adapted(base)), loss_and_gradients(explicit)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert gradients.keys() == theirs.keys()
    assert all("lora_" in name for name in gradients)
    assert min(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-4
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-4, atol=1e-5)


def test_it_is_another_base_than_the_one_that_was_read_and_takes_less_memory():
    model = quantized()
    ours, read = dict(base_weights(model)), load_file(f"{model_folder('miniature')}/model.safetensors")
    assert ours.keys() >= read.keys()
    for name, weight in read.items():
        moved = float((ours[name] - weight).abs().max() / weight.abs().max())
        assert (0.005 < moved < 0.2) if "_proj" in name else moved == 0, name
    held = sum(one.numel() * one.element_size() for name, one in model.state_dict().items() if "_proj" in name)
    assert held < 0.2 * sum(one.nbytes for name, one in read.items() if "_proj" in name)


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")])
def test_what_leaves_the_trainer_is_plain_and_merged(targets, tmp_path):
    model = adapted(quantized(), targets)
    ids = torch.tensor([PROMPTS[0] + COMPLETIONS[0]])
    plain_copy(model).save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {type(one).__module__.partition(".")[0] for one in again.modules()} == {"torch", "transformers"}
    torch.testing.assert_close(again(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)
    sent, saved = dict(merged_weights(model)), again.state_dict()
    assert sent.keys() == saved.keys()
    for name, weight in sent.items():
        torch.testing.assert_close(weight, saved[name])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("peft")
    path = tmp_path_factory.mktemp("whole")
    train(small(path, **NF4, **{"objective.kl_coefficient": 0.1}))
    return path


def test_a_run_leaves_a_plain_model_that_its_card_explains(whole):
    assert all(line["policy/engine_gap"] < 1e-5 for line in lines(whole / "metrics.jsonl"))
    assert "held in 4 bits" in (whole / "model/README.md").read_text()
    assert load_model(str(whole / "model"), load_config().policy).model.dtype == torch.float32
    base = load_file(f"{model_folder('miniature')}/model.safetensors")
    assert load_file(whole / "model/model.safetensors").keys() == base.keys()


def test_a_run_goes_on_bitwise(whole, tmp_path):
    config = small(tmp_path, checkpoint_every=2, **NF4, **{"objective.kl_coefficient": 0.1})
    train_interrupted(config, 3)
    assert_same_run(tmp_path, whole)
