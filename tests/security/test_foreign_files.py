"""Files of others, made to do harm: templates, YAML, pickles, code beside a model. Nothing of them runs."""

import json
import os
import shutil
from importlib import resources

import pytest
import torch

from luffy import ConfigError, DataError, ModelError, Problem, load_config
from luffy.config import PolicyConfig
from luffy.data import render_prompt
from luffy.policy import load_model, load_tokenizer
from tiny_models import build_byte_tokenizer

MINIATURE = resources.files("luffy") / "assets" / "miniature"
QUESTION = Problem("p", "2+2", "4")


class Bomb:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


# -- chat templates


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.mkdir('MARK') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ (messages|attr('__class__')).__mro__ }}",
        "{% set x = messages.append('more') %}{{ messages }}",
    ],
)
def test_a_chat_template_cannot_leave_the_sandbox(template, tmp_path):
    mark = tmp_path / "mark"
    tokenizer = build_byte_tokenizer(chat_template=template.replace("MARK", str(mark)))
    with pytest.raises(DataError, match="the chat template refuses the prompt"):
        render_prompt(QUESTION, tokenizer, "chat")
    assert not mark.exists()


def test_a_prompt_is_text_to_the_template_and_no_template():
    tokenizer = build_byte_tokenizer(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    prompt = "{{ 7 * 7 }} {% for x in range(9) %}x{% endfor %}"
    assert render_prompt(Problem("p", prompt, "4"), tokenizer, "chat") == prompt


# -- YAML


@pytest.mark.parametrize("where", ["recipe", "override", "record of a run"])
def test_yaml_builds_no_objects(where, tmp_path):
    mark = tmp_path / "mark"
    tag = f'!!python/object/apply:os.mkdir ["{mark}"]'
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"config:\n  model: {tag}\n" if where == "record of a run" else f"model: {tag}\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(*((None, [f"model={tag}"]) if where == "override" else (recipe,)))
    assert not mark.exists()


# -- models


@pytest.fixture
def folder(tmp_path):
    """A copy of the miniature to be tampered with."""
    shutil.copytree(MINIATURE, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("allowed", [False, True])
def test_a_pickle_is_refused_and_one_that_is_allowed_can_still_not_run_code(folder, tmp_path, allowed):
    mark = tmp_path / "mark"
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Bomb(mark)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded" if allowed else "is a pickle, which can run code"):
        load_model(str(folder), PolicyConfig(allow_pickle=allowed))
    assert not mark.exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_does_not_run(folder, tmp_path, file):
    mark = tmp_path / "mark"
    for name in ("configuration_evil", "tokenization_evil"):
        (folder / f"{name}.py").write_text(f"import os\nos.mkdir({str(mark)!r})\nclass Evil: ...\n")
    content = json.loads((folder / file).read_text())
    if file == "config.json":
        content |= {"model_type": "evil", "auto_map": {"AutoConfig": "configuration_evil.Evil"}}
    else:
        content |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["tokenization_evil.Evil", None]}}
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelError):
        load_model(str(folder), PolicyConfig())
    if file == "tokenizer_config.json":
        with pytest.raises(ModelError):
            load_tokenizer(str(folder))
    assert not mark.exists()
