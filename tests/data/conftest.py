"""Tokenizers and files for the tests of `luffy.data`."""

import json
from importlib import resources

import pytest

from tiny_models import build_byte_tokenizer as make_byte_tokenizer


@pytest.fixture(scope="session")
def plain_tokenizer():
    """The miniature's: a token a character, no chat template, nothing added to a text."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(resources.files("luffy") / "assets/miniature"))


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
)


@pytest.fixture(scope="session")
def build_byte_tokenizer():
    return make_byte_tokenizer


@pytest.fixture(scope="session")
def byte_tokenizer():
    return make_byte_tokenizer()


@pytest.fixture(scope="session")
def chat_tokenizer():
    return make_byte_tokenizer(chat_template=CHAT_TEMPLATE)


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
