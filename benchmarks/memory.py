"""Peak memory of log-probs, entropy and backward at a large vocabulary: ours, the full logits, TRL's fused head.

`python benchmarks/memory.py`. Vocabulary 150,000, 8,192 tokens, width 256, float32. Goals: at most 1/4 of the full
logits, and no more than TRL's chunked function (`trl.kernels`), which computes the same in tiles. Each case runs in a
process of its own; counted is the growth of its resident size over its start, the gradients of hidden states and head
included. Where the machine has too little memory for the full logits, fewer tokens are taken for all, and the row says
so.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from measuring import outcome, report

from luffy.policy import score_hidden_states

TOKENS, VOCABULARY, WIDTH = 8192, 150_000, 256
COPIES = 4  # of the full logits: three that exist at once in the plain way, and room for others
CHUNK_ELEMENTS = 2**24  # the default of policy.chunk_elements
STATUS = Path("/proc/self/status")


def resident(name: str) -> int:
    """VmRSS or VmHWM (its peak) of this process, in bytes."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def available() -> int:
    """Memory that could be taken now, in bytes."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def run_case(case: str, tokens: int) -> None:
    """Compute once and print the growth in bytes and the gradient's norm."""
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    hidden = torch.randn(tokens, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (tokens,))
    compute = {"full": full_logits, "ours": chunked, "trl": trl_tiles}[case]
    if case == "trl":
        import trl.trainer.utils  # noqa: F401  its own memory is not counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    logprobs, entropy = compute(hidden, targets, head)
    logprobs.exp().sum().backward()
    assert hidden.grad is not None
    assert bool(entropy.isfinite().all())
    print(resident("VmHWM") - before, float(hidden.grad.norm()))


def full_logits(
    hidden: torch.Tensor, targets: torch.Tensor, head: torch.nn.Linear
) -> tuple[torch.Tensor, torch.Tensor]:
    """The plain way."""
    logprobs = torch.log_softmax(head(hidden), dim=-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    return logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy


def chunked(hidden: torch.Tensor, targets: torch.Tensor, head: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours."""
    scores = score_hidden_states(hidden, targets, head, chunk_tokens=CHUNK_ELEMENTS // VOCABULARY)
    return scores.logprobs, scores.entropy


def trl_tiles(hidden: torch.Tensor, targets: torch.Tensor, head: torch.nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """TRL's, with the tile size that its trainers use."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

    logprobs, entropy, *_ = ChunkedLogProbFunction.apply(
        hidden, head.weight, None, targets, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, ("entropy",)
    )
    return logprobs, entropy


def measure(case: str, tokens: int) -> tuple[float, float]:
    """Growth in GB and gradient norm of a case, in a fresh process. Raises CalledProcessError where it failed."""
    command = [sys.executable, __file__, case, str(tokens)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    grown, norm = done.stdout.split()
    return int(grown) / 1e9, float(norm)


def main() -> None:
    """Measure the three."""
    tokens = TOKENS
    while COPIES * tokens * VOCABULARY * 4 > available():
        tokens //= 2
    measured = {case: measure(case, tokens) for case in ("full", "ours")}
    try:
        measured["trl"] = measure("trl", tokens)
        why = ""
    except subprocess.CalledProcessError:
        why = "TRL is not installed, or its function has another name: see the error above"
    norms = [norm for _, norm in measured.values()]
    assert max(norms) - min(norms) < 1e-3 * max(norms), "the gradients differ"
    size = f"{tokens} tokens, vocabulary {VOCABULARY}" + ("" if tokens == TOKENS else " (memory is short)")
    note = f"{size}: " + ", ".join(f"{case} {grown:.2f} GB" for case, (grown, _) in measured.items())
    what, ours = "peak memory: log-probs, entropy, backward", measured["ours"][0]
    rows = [
        outcome(what, "full logits", ours / measured["full"][0], "<= 0.25", note=note),
        outcome(
            what, "TRL's fused head", None if why else ours / measured["trl"][0], "<= 1", note=why or "the same run"
        ),
    ]
    report("memory", rows, gigabytes={case: grown for case, (grown, _) in measured.items()}, tokens=tokens)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_case(sys.argv[1], int(sys.argv[2]))
    else:
        main()
