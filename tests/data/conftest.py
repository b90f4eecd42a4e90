"""Tokenizers and files for the tests of `luffy.data`."""

import json
from importlib import resources

import pytest


@pytest.fixture(scope="session")
def plain_tokenizer():
    """The miniature's: a token a character, no chat template, nothing added to a text."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(resources.files("luffy") / "assets/miniature"))


def _build_byte_tokenizer(*, chat_template=None, closes_texts=False, **special):
    """A tokenizer of single bytes that starts every text with `<s>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", "<|user|>", "<|end|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = " </s>" if closes_texts else ""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>"} | special
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=["<|user|>", "<|end|>"], **special
    )
    fast.chat_template = chat_template
    return fast


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.fixture(scope="session")
def build_byte_tokenizer():
    return _build_byte_tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    return _build_byte_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer():
    return _build_byte_tokenizer(chat_template=CHAT_TEMPLATE)


@pytest.fixture
def write_rows(tmp_path):
    """Write rows, given as objects, text or bytes, to a JSONL file and return its path."""

    def write(*rows, name="train.jsonl", separator=b"\n"):
        encoded = [
            row if isinstance(row, bytes) else row.encode() if isinstance(row, str) else json.dumps(row).encode()
            for row in rows
        ]
        path = tmp_path / name
        path.write_bytes(separator.join(encoded) + separator if encoded else b"")
        return path

    return write
