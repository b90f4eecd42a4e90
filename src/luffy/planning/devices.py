"""Devices: memory, rate of matrix products, bandwidth, and how much of them is assumed to be reached.

The figures are dense products of bfloat16 without sparsity, memory in GB (10^9 bytes), GB a second. Each was compared
with the public pages named beside it, which quote the vendor's data sheets; the data sheets themselves were not at
hand. A device whose pages contradict each other is not in the table (B200: 179 or 192 GB).
The share that is reached is assumed: not run on a GPU yet.
Prices are not in the table: they change, and `--price` states one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from luffy.config import nearest
from luffy.errors import ConfigError
from luffy.files import parse_json
from luffy.planning.machine import GIB, memory, multiplies_bfloat16


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan needs to know of a device."""

    name: str
    memory: float  # bytes
    flops: float  # operations a second of large matrix products in the type of the update
    bandwidth: float  # bytes a second
    utilisation: float = 0.4  # share of `flops` that an update reaches
    decode_utilisation: float = 0.5  # share of `bandwidth` at which a decode step reads weights and cache
    decode_flops: float = 0.0  # operations a second of products with few rows; 0: as in an update
    call: float = 30e-6  # seconds a layer takes at least, whatever its size
    token: float = 0.0  # seconds that a decode step takes outside the model, whatever its size
    number: float = 0.0  # seconds an update spends on a number that a layer keeps, outside products
    logit: float = 0.0  # seconds an update spends on a logit, outside products
    draw: float = 0.0  # seconds that drawing a token spends on a logit
    source: str = "stated"
    gpu: bool = False
    bfloat16: Mapping[str, float] | None = None  # rates that differ for products of bfloat16; None: it has no units
    lean: Mapping[str, float] | None = None  # `call` and `token` of models that decode in few calls; None: as others

    def computing_bfloat16(self) -> Device:
        """The same device with its rates for bfloat16, where it has units for it."""
        rates: dict[str, Any] = dict(self.bfloat16 or {})
        return replace(self, **rates)

    def decoding_lean(self) -> Device:
        """The same device where a decode step is made of few calls."""
        rates: dict[str, Any] = dict(self.lean or {})
        return replace(self, **rates)


def _quoted(name: str, gigabytes: float, teraflops: float, gigabytes_a_second: float, *pages: str) -> Device:
    source = f"peaks as quoted by {' and '.join(pages)}; shares assumed, not run on a GPU yet"
    return Device(
        name, gigabytes * 1e9, teraflops * 1e12, gigabytes_a_second * 1e9, source=source, gpu=True, bfloat16={}
    )


GARDEN = "https://glennklockwood.com/garden/processors/"  # quotes NVIDIA's data sheet and white papers
TORCHTITAN = "https://github.com/pytorch/torchtitan/blob/main/torchtitan/tools/utils.py"  # rates, with NVIDIA's pages
LIGHTNING = "https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/fabric/utilities/throughput.py"


DEVICES = {
    device.name: device
    for device in (
        _quoted("A100-40", 40, 312, 1555, f"{GARDEN}A100"),
        _quoted("A100-80", 80, 312, 2039, f"{GARDEN}A100"),
        _quoted("H100", 80, 989, 3350, f"{GARDEN}h100"),
        _quoted("H200", 141, 989, 4800, "https://www.aiminingco.com/gpu/h200/specs", TORCHTITAN),
        _quoted("L40S", 48, 362, 864, "https://www.mullet.se/product.html?product_id=355414", TORCHTITAN),
        _quoted("RTX-4090", 24, 165, 1008, "https://waredb.com/processor/nvidia-geforce-rtx-4090"),
        _quoted(
            "A10", 24, 125, 600, "https://www.baseten.co/blog/nvidia-a10-vs-a10g-for-ml-model-inference/", LIGHTNING
        ),
    )
}


def find_device(name: str) -> Device:
    """A device of the table. Raises ConfigError naming the nearest."""
    wanted = name.replace(" ", "-").upper()
    for known, device in DEVICES.items():
        if known.upper() == wanted:
            return device
    raise ConfigError(f"--gpu: unknown device {name!r}.{nearest(wanted, DEVICES)} Known: {', '.join(DEVICES)}.")


def cache_file() -> Path:
    """Where `luffy plan --measure` leaves what it measured, unless told otherwise."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "luffy" / "rates.json"


def write_device(device: Device, file: Path) -> None:
    """Keep a measured device. Raises ConfigError where the file cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(device), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: the measured rates cannot be written ({error}).") from None


def read_device(file: Path) -> Device:
    """A device that was measured. Raises ConfigError for a file that holds none."""
    try:
        found: Mapping[str, Any] = parse_json(file.read_text(encoding="utf-8"))
        return Device(**found)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{file}: holds no measured rates ({error}). Make it with `luffy plan --measure`.") from None


def this_machine(file: Path | None = None) -> Device:
    """This machine, as measured; without a measurement, its memory and rates of a laptop's core, which says so."""
    file = file or cache_file()
    if file.is_file():
        return read_device(file)
    return Device(
        "this machine", memory_here(), flops=50e9, bandwidth=10e9, utilisation=0.7, decode_utilisation=0.8, call=1e-3,
        source="not measured: rates assumed, `luffy plan --measure` measures them",
        bfloat16={} if multiplies_bfloat16() else None,
    )  # fmt: skip


def memory_here() -> float:
    """Bytes of memory of this machine, or of its container."""
    sizes = memory()
    return sizes[0] * GIB if sizes else 8 * GIB
