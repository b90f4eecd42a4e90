"""Tensors on disk of which every process wrote its part, into safetensors files of its own; nothing is pickled.

`torch.distributed.checkpoint` plans and reads them. Its own format keeps a pickle of what lies where; that of Hugging
Face, which is used here, notes in the head of each file which part of a tensor it holds. So another number of processes
finds what it needs, and so does one alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from luffy.errors import RunError

FILE_BYTES = 2**30  # what a file holds, more or less

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luffy.training.world import World


def write_parts(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Write into a folder that is there: of split tensors each process its part, of whole ones one of them does.

    Every process calls it with tensors of the same names. Raises RunError on all processes where they do not see the
    same folder; what one of them cannot write raises, on all of them, what the system said to it.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    world.together(lambda: _check_seen(folder))
    writer = HuggingFaceStorageWriter(str(folder), _files(tensors, world.size), save_distributed=True)
    with _first_failure():
        save(dict(tensors), storage_writer=writer, process_group=world.group)


def read_parts(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, split or whole, by their names. Each process reads what it needs, and waits for no other.

    Raises what the libraries do where a file is damaged, or a tensor is missing or of another shape.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    with _first_failure(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # it is asked not to be used
        load(dict(tensors), storage_reader=reader, no_dist=True)


def names_in(folder: Path) -> set[str]:
    """The names of the tensors that a folder of parts holds."""
    from safetensors import safe_open

    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names


def _files(tensors: Mapping[str, Tensor], processes: int) -> dict[str, int]:
    """The number, from 1, of the file of a process that each tensor goes into: the library fills a file in memory."""
    numbers: dict[str, int] = {}
    filled = 0
    for name, tensor in tensors.items():
        numbers[name] = 1 + filled // FILE_BYTES
        filled += tensor.numel() * tensor.element_size() // processes
    return numbers


def _check_seen(folder: Path) -> None:
    if not folder.is_dir():
        raise RunError(
            f"{folder}: a process does not see the folder that the first one has made. parallel.checkpoint=sharded "
            "needs a file system that all machines share; parallel.checkpoint=whole does not."
        )


@contextmanager
def _first_failure() -> Iterator[None]:
    """Raise what went wrong in the first process that failed, in place of the library's report of all of them."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
