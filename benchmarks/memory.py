"""Peak memory of log-probs, entropy and backward at a large vocabulary, against the full logits.

`python benchmarks/memory.py`. Goal: at most 1/3 of the full logits, at vocabulary 150,000 and 4,096 tokens (width 64).
Each case runs in a process of its own; counted is the growth of its largest resident size over its start.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import torch
from measuring import report

from luffy.policy import score_hidden_states

TOKENS, VOCABULARY, WIDTH, GOAL = 4096, 150_000, 64, 1 / 3
CHUNK_ELEMENTS = 2**24  # the default of policy.chunk_elements


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_case(case: str) -> None:
    """Compute once and print the growth in bytes and the gradient's norm."""
    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, VOCABULARY, bias=False)
    hidden = torch.randn(TOKENS, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCABULARY, (TOKENS,))
    before = peak_bytes()
    if case == "full":
        logprobs_all = torch.log_softmax(head(hidden), dim=-1)
        logprobs = logprobs_all.gather(-1, targets[:, None]).squeeze(-1)
        with torch.no_grad():
            entropy = -(logprobs_all.exp() * logprobs_all).sum(dim=-1)
    else:
        scores = score_hidden_states(hidden, targets, head, chunk_tokens=CHUNK_ELEMENTS // VOCABULARY)
        logprobs, entropy = scores.logprobs, scores.entropy
    logprobs.exp().sum().backward()
    assert hidden.grad is not None
    assert bool(entropy.isfinite().all())
    print(peak_bytes() - before, float(hidden.grad.norm()))


def measure(case: str) -> tuple[float, float]:
    """Growth in GB and gradient norm of a case, in a fresh process."""
    done = subprocess.run([sys.executable, __file__, case], capture_output=True, text=True, check=True)
    grown, norm = done.stdout.split()
    return int(grown) / 1e9, float(norm)


def main() -> None:
    """Measure both."""
    (full, full_norm), (chunked, chunked_norm) = measure("full"), measure("chunked")
    assert abs(full_norm - chunked_norm) < 1e-3 * full_norm, "the gradients differ"
    row: dict[str, Any] = {
        "tokens": TOKENS,
        "vocabulary": VOCABULARY,
        "full logits, GB": full,
        "ours, GB": chunked,
        "ours / full": chunked / full,
        "goal": "<= 0.33",
        "reached": "yes" if chunked / full <= GOAL else "no",
    }
    report("memory", [row])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_case(sys.argv[1])
    else:
        main()
