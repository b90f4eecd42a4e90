"""The side of vLLM of a weight update: a backend of its public weight-transfer interface that needs no GPU.

vLLM's own backends send through NCCL or CUDA's memory handles. This one takes tensors in the same process, or the names
of safetensors files in a folder that both sides see: on a CPU as on a GPU, and with a model split over several workers,
each of which reads the files and keeps its part.

- On a CPU vLLM multiplies with packed copies of weights, and its reloading packs what was loaded by name. An output
  head tied to the embedding never is: it would go on with the old weights, so it is packed here.
- A model that got only some of its weights is never taken for whole: the update fails and names one that is lacking.
- An update that was broken off is ended before the next one begins: vLLM counts what came for a layer, and what came
  before would count, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import Module
from vllm.distributed.weight_transfer import WeightTransferEngine
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


@dataclass
class ReceiverInit(WeightTransferInitInfo):  # type: ignore[misc]  # of a library without types
    """What is agreed on at the beginning."""

    folder: str | None = None  # the only one that files are read from


@dataclass
class Bucket(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A part of the weights: the name of a file in the folder, or, in the same process, names and tensors."""

    file: str | None = None
    weights: Iterable[tuple[str, Tensor]] | None = None
    last: bool = False  # whether all weights have come with this one


class Receiver(WeightTransferEngine):  # type: ignore[misc]
    """Takes weights by their names in the checkpoint."""

    init_info_cls = ReceiverInit
    update_info_cls = Bucket

    _folder: Path | None = None
    _begun = False  # whether an update has begun and not ended

    def init_transfer_engine(self, init_info: ReceiverInit) -> None:
        """Agree on the folder."""
        self._folder = None if init_info.folder is None else Path(init_info.folder)

    def start_weight_update(self) -> None:
        """Make ready for all weights."""
        if self._begun:
            self.finish_weight_update()
        self._begun = True
        self._lacking = {_plain(name) for name, _ in self.model.named_parameters()}
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Take a part of them; vLLM's own method waits for an accelerator, which a CPU lacks."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Bucket) -> None:
        """Load a part. Raises ValueError where weights are lacking, and what vLLM raises for those of another model."""
        if update_info.weights is not None:
            weights = update_info.weights
        elif update_info.file is not None:
            weights = load_file(self._path(update_info.file)).items()
        else:
            raise ValueError("a bucket without weights")
        loaded = self.model.load_weights(weights)
        self._lacking -= {_plain(name) for name in loaded or self._lacking}
        if update_info.last and self._lacking:
            raise ValueError(f"{len(self._lacking)} weights of vLLM's model did not come, {min(self._lacking)} first")

    def finish_weight_update(self) -> None:
        """Make the kernels' copies."""
        finalize_layerwise_reload(self.model, self.model_config)
        pack_tied_heads(self.model)
        self._begun = False

    def shutdown(self) -> None:
        """Nothing is held."""

    def _path(self, file: str) -> Path:
        if self._folder is None or Path(file).name != file:
            raise ValueError(f"{file!r} is no file of the agreed folder")
        return self._folder / file


def _plain(name: str) -> str:
    """As it is called where vLLM has put no adapter around the layer."""
    return name.replace(".base_layer.", ".")


def pack_tied_heads(model: Module) -> None:
    """Pack the output heads anew whose weight is another layer's; does nothing where vLLM keeps no packed copies."""
    first_with: dict[int, Module] = {}
    layer: Any  # of vLLM's classes
    for layer in model.modules():
        weight = layer._parameters.get("weight")  # its own: a layer with an adapter shows that of the layer within it
        if weight is None or not weight.numel() or first_with.setdefault(weight.data_ptr(), layer) is layer:
            continue
        if hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)
