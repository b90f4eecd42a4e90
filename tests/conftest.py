"""What all tests share."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from tiny_models import build_model

torch.set_num_threads(1)  # for fixtures that outlive a test and so come before the one below


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(params=["llama", "qwen"])
def model(request):
    return build_model(request.param)
