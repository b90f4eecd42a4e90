"""An adapter on its way to vLLM's server: merged into all weights, or by itself; bytes and seconds of an update.

    .venv-vllm/bin/python benchmarks/adapter_transfer.py      # after `make test-vllm` has made .venv-vllm

A random model of SmolLM2-135M's shape, rank 8 on all linear layers of the blocks, a server of its own on this machine
for each way. Prints the table, writes benchmarks/results/adapter_transfer.json and the table of docs/engines.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import RESULTS, ROOT, replace

RANK = 8
UPDATES = 5
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
HEADS = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048}


def build_policy(layers: int) -> Any:
    """A random model of that shape with an adapter."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = SHAPE | {"num_hidden_layers": layers}
    return LlamaForCausalLM(LlamaConfig(**shape, **HEADS, tie_word_embeddings=True)).eval()


def measure(policy: Any, folder: Path, *, lora: bool) -> dict[str, float]:
    """Bytes that an update writes, and the seconds until the server has it; the first update is left out."""
    from luffy.config import Config
    from luffy.policy import LoadedModel
    from luffy.rollout.vllm_server import VllmServerEngine

    of_vllm = {"eager": True, "cache_gib": 0.25, "max_length": 128, "lora": lora}
    config = Config.model_validate(
        {
            "model": str(folder / "model"),
            "output": str(folder / f"run-{lora}"),
            "adapter": {"rank": RANK},
            "rollout": {"engine": "vllm_server", "vllm": of_vllm},
        }
    )
    tokenizer: Any = None
    engine = VllmServerEngine(config, LoadedModel(policy, tokenizer, (0,), 0))
    try:
        seconds = []
        for _ in range(UPDATES):
            began = time.perf_counter()
            engine.update_weights(policy)
            seconds.append(time.perf_counter() - began)
        buckets = engine._buckets
        assert buckets is not None
        files = buckets.folder.glob("adapter-*/*" if lora else "*.safetensors")
        return {"bytes": sum(file.stat().st_size for file in files), "seconds": statistics.median(seconds)}
    finally:
        engine.close()


def main() -> None:
    """Measure both, print, write."""
    from luffy.config import AdapterConfig
    from luffy.policy.adapters import add_adapter

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="fewer for a quick look")
    given = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(given.layers)
        policy.save_pretrained(Path(folder) / "model")
        add_adapter(policy, AdapterConfig(rank=RANK), seed=0)
        found = {name: measure(policy, Path(folder), lora=name == "alone") for name in ("merged", "alone")}
    lines = ["| an update of 135M parameters, rank 8, float32 | MB | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {row['bytes'] / 1e6:.1f} | {row['seconds']:.2f} |" for name, row in found.items()]
    print("\n".join(lines))
    parameters = sum(one.numel() for name, one in policy.named_parameters() if "lora_" not in name)
    if given.layers == SHAPE["num_hidden_layers"]:
        record = {"rank": RANK, "parameters": parameters, "dtype": "float32", "updates": UPDATES, "ways": found}
        (RESULTS / "adapter_transfer.json").write_text(json.dumps(record, indent=1) + "\n")
        replace(ROOT / "docs" / "engines.md", "adapter_transfer", "\n".join(lines))


if __name__ == "__main__":
    main()
