"""Weights on their way to a server: safetensors files of limited size in a folder that both sides see, or an adapter.

The newest whole set stays in the folder until the next one replaces it, so that a server that was started anew gets it
again, whatever the policy has become meanwhile.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from luffy.errors import RunError
from luffy.files import writing
from luffy.policy.adapters import save_adapter, trained_weights

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

IN_MEMORY = Path("/dev/shm")  # files there never reach a disk


class Buckets:
    """The files of the newest weights."""

    def __init__(self, folder: str | None, bucket_mib: int, dtype: str) -> None:
        """folder: where both sides see it; None: one in this machine's memory, or else on its disk. Raises RunError."""
        parent = Path(folder) if folder else IN_MEMORY if IN_MEMORY.is_dir() else None
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="luffy-weights-", dir=parent))
        except OSError as error:
            raise RunError(f"rollout.vllm.exchange: no folder for weights in {parent} ({error.strerror}).") from None
        self._limit = bucket_mib * 2**20
        self._dtype = getattr(torch, dtype)
        self.files: list[str] = []

    def write(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the files by these weights, in the server's type. Raises RunError where they cannot be written."""
        self.files = []
        for old in self.folder.glob("*.safetensors"):
            old.unlink()
        with self._errors():
            for number, bucket in enumerate(self._filled(weights)):
                name = f"{number:05d}.safetensors"
                save_file(bucket, self.folder / name)
                self.files.append(name)

    def write_adapter(self, policy: PreTrainedModel, version: int) -> str:
        """Write the policy's adapter in place of the one before. Returns its folder. Raises RunError likewise."""
        for old in self.folder.glob("adapter-*"):
            shutil.rmtree(old, ignore_errors=True)
        folder = self.folder / f"adapter-{version}"  # a new one: what vLLM keeps of prompts goes by it
        with self._errors():
            save_adapter(folder, policy, trained_weights(policy), "")
        return str(folder)

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with writing(self.folder):
                yield
        except RunError as error:
            raise RunError(
                f"the weights for vLLM's server: {error} rollout.vllm.exchange names a folder with room for them, "
                "which the server sees too."
            ) from None

    def _filled(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        """The weights, as many at a time as a bucket takes, one at least."""
        bucket: dict[str, Tensor] = {}
        held = 0
        for name, weight in weights:
            tensor = weight.to("cpu", self._dtype if weight.is_floating_point() else None).contiguous()
            if bucket and held + tensor.nbytes > self._limit:
                yield bucket
                bucket, held = {}, 0
            bucket[name] = tensor
            held += tensor.nbytes
        if bucket:
            yield bucket
