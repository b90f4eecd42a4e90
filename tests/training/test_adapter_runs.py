"""Runs that train an adapter: what they leave behind, and that stopping changes nothing."""

import pytest
import torch
from safetensors.torch import load_file

from luffy import load_config, train
from luffy.policy import load_model, model_folder
from luffy.policy.adapters import add_adapter
from luffy.training.learner import Learner
from small_runs import assert_same_run, lines, small, train_interrupted

pytest.importorskip("peft")

RANK = {"adapter.rank": 4}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    train(small(path, **RANK, **{"objective.kl_coefficient": 0.1}))
    return path


def test_adapter_and_merged_model_are_left(whole):
    assert {file.name for file in (whole / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors"
    }  # fmt: skip
    base = load_file(f"{model_folder('miniature')}/model.safetensors")
    trained = load_file(whole / "model/model.safetensors")
    assert trained.keys() == base.keys()
    changed = {name for name, tensor in trained.items() if not torch.equal(tensor, base[name])}
    assert changed == {name for name in base if "_proj" in name}
    assert "LoRA of rank 4" in (whole / "model/README.md").read_text()
    assert not (whole / "checkpoints/step-000004/model").exists()


def test_what_generates_is_the_adapted_model(whole):
    assert all(line["policy/engine_gap"] < 1e-5 for line in lines(whole / "metrics.jsonl"))


@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_with_an_adapter_goes_on_bitwise(stop_after, whole, tmp_path):
    config = small(tmp_path, checkpoint_every=2, **RANK, **{"objective.kl_coefficient": 0.1})
    train_interrupted(config, stop_after)
    assert_same_run(tmp_path, whole)
    ours, theirs = (load_file(path / "adapter/adapter_model.safetensors") for path in (tmp_path, whole))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_reference_of_the_penalty_is_the_base_and_no_second_model():
    config = load_config(overrides=RANK | {"objective.kl_coefficient": 1.0})
    loaded = load_model("miniature", config.policy)
    add_adapter(loaded.model, config.adapter, seed=0)
    learner = Learner(loaded, config)
    assert learner.reference.model is loaded.model
