"""Loading a model: what is refused, with which sentence, and what is made of it."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from luffy.config import PolicyConfig
from luffy.errors import ModelError
from luffy.policy import load_model, load_tokenizer, model_folder, pick_device
from luffy.policy.load import disable_dropout

CPU = PolicyConfig(device="cpu")


@pytest.fixture
def folder(tmp_path):
    """A copy of the miniature that a test may damage."""
    return shutil.copytree(model_folder("miniature"), tmp_path / "model")


def change_json(path, **changes):
    content = json.loads(path.read_text())
    content |= changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_the_miniature_is_ready_to_generate():
    loaded = load_model("miniature", CPU)
    assert not loaded.model.training
    assert loaded.eos_ids == (loaded.tokenizer.eos_token_id,)
    assert loaded.pad_id == loaded.tokenizer.pad_token_id
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == pytest.approx(0.64e6, rel=0.05)


def test_loading_is_silent(folder, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_model(str(folder), PolicyConfig(device="cpu", gradient_checkpointing=True))
        loaded.model.save_pretrained(folder / "again")
    assert capfd.readouterr() == ("", "")


def test_a_missing_folder_names_its_neighbour(tmp_path):
    (tmp_path / "my_model").mkdir()
    with pytest.raises(ModelError, match=r"my_modle: there is no such model folder\. Did you mean 'my_model'\?"):
        load_model(str(tmp_path / "my_modle"), CPU)


def test_a_folder_without_configuration(tmp_path):
    with pytest.raises(ModelError, match=r"not a Hugging Face model folder, config\.json is missing"):
        load_model(str(tmp_path), CPU)


@pytest.mark.parametrize("content", ["{broken", "[1, 2]", ""])
def test_a_broken_configuration(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json: (cannot be read as JSON|expected an object)"):
        load_model(str(folder), CPU)


def test_an_unknown_architecture(folder):
    change_json(folder / "config.json", model_type="nonsense", architectures=["Nonsense"])
    with pytest.raises(ModelError, match="model"):
        load_model(str(folder), CPU)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no weights \(\*\.safetensors\)"):
        load_model(str(folder), CPU)


def test_half_a_weights_file(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_model(str(folder), CPU)


def test_weights_of_another_shape(folder):
    change_json(folder / "config.json", hidden_size=64)
    with pytest.raises(ModelError, match="cannot be loaded as a causal language model"):
        load_model(str(folder), CPU)


def test_missing_weights_are_not_made_up(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights of LlamaForCausalLM are not in its files, model\.norm\.weight"):
        load_model(str(folder), CPU)


def test_pickled_weights_are_refused_unless_allowed(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is a pickle.*policy\.allow_pickle=true"):
        load_model(str(folder), CPU)
    load_model(str(folder), PolicyConfig(device="cpu", allow_pickle=True))


def test_a_models_own_code_is_refused(folder):
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "code.Model"})
    (folder / "code.py").write_text("raise SystemExit('this must not run')")
    with pytest.raises(ModelError, match=r"its own Python code\. Set policy\.trust_remote_code=true"):
        load_model(str(folder), CPU)


def test_a_tokenizer_without_end_of_sequence(folder):
    change_json(folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(ModelError, match=r"no end-of-sequence token.*Set eos_token in its tokenizer_config\.json"):
        load_model(str(folder), CPU)


def test_a_tokenizer_without_pad_token_works(folder):
    change_json(folder / "tokenizer_config.json", pad_token=None)
    change_json(folder / "tokenizer.json", padding=None)
    loaded = load_model(str(folder), CPU)
    assert loaded.tokenizer.pad_token_id is None
    assert loaded.pad_id == loaded.tokenizer.eos_token_id


def test_a_pad_token_that_the_model_has_no_embedding_for(folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    loaded = load_model(str(folder), CPU)
    assert loaded.pad_id == loaded.eos_ids[0]


def test_another_token_that_the_model_has_no_embedding_for(folder):
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"no embedding \(24 rows\), '<new>' for one"):
        load_model(str(folder), CPU)


def test_a_folder_without_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="no tokenizer can be loaded from it"):
        load_tokenizer(str(folder))


def test_several_ends_the_tokenizers_first(folder):
    change_json(folder / "generation_config.json", eos_token_id=[5, 1, 7])
    assert load_model(str(folder), CPU).eos_ids == (1, 5, 7)


def test_a_device_that_is_not_there():
    for name in ("nonsense", "cuda:77"):
        with pytest.raises(ModelError, match=f"policy.device={name} cannot be used"):
            pick_device(name)


def test_the_context_can_be_extended(folder):
    extended = load_model(str(folder), PolicyConfig(context_length=512, rope_theta=4e4)).model
    assert extended.config.max_position_embeddings == 512
    assert extended.config.rope_parameters["rope_theta"] == 4e4
    frequencies = extended.model.rotary_emb.inv_freq
    size = 2 * len(frequencies)
    torch.testing.assert_close(frequencies, 4e4 ** (-torch.arange(0, size, 2) / size))


def test_a_model_without_positions_has_no_context_to_extend(tmp_path):
    from transformers import BloomConfig, BloomForCausalLM

    tokenizer = load_tokenizer("miniature")
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2, eos_token_id=1)
    BloomForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    for key in ("context_length", "rope_theta"):
        with pytest.raises(ModelError, match=f"policy.{key} cannot be set, its config.json has no"):
            load_model(str(tmp_path), PolicyConfig(**{key: 100}))


def test_no_dropout_in_any_mode(folder):
    change_json(folder / "config.json", attention_dropout=0.5)
    loaded = load_model(str(folder), CPU)
    ids = torch.arange(2, 14)[None]
    with torch.no_grad():
        calm, trained = loaded.model(ids).logits, loaded.model.train()(ids).logits
    assert torch.equal(calm, trained)
    loaded.model.save_pretrained(folder / "again")
    assert json.loads((folder / "again/config.json").read_text())["attention_dropout"] == 0.5  # as it came


def test_dropout_modules_are_switched_off():
    module = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.TransformerEncoderLayer(8, 2, 8, dropout=0.3))
    disable_dropout(module)
    assert {one.p for one in module.modules() if isinstance(one, torch.nn.Dropout)} == {0.0}
