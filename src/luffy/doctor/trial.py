"""Whether it works: the built-in miniature answers a question; on request, whether the hub answers."""

from __future__ import annotations

import os
import time

from luffy.doctor.findings import Finding
from luffy.errors import LuffyError

TOKENS = 84  # the longest answer to a question of the set has fewer


def try_generation() -> Finding:
    """Load the miniature, let it work out a chain of arithmetic, and verify the answer."""
    began = time.perf_counter()
    try:
        correct, tokens, seconds = _generate()
    except (LuffyError, RuntimeError, OSError, ImportError, ValueError) as error:
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        return Finding("trial", "generation", "failed", "missing", reason)
    whole = time.perf_counter() - began
    found = f"{tokens} tokens of the miniature in {seconds:.2f} s ({whole:.1f} s with loading)"
    if not correct:
        return Finding("trial", "generation", f"{found}, wrong answer", "missing", "torch computes wrongly here")
    return Finding("trial", "generation", f"{found}, right answer")


def _generate() -> tuple[bool, int, float]:
    """(whether the answer is right, tokens, seconds of generation)."""
    from luffy.config import Config
    from luffy.data import encode_prompt
    from luffy.data.miniature import evaluation_problems
    from luffy.policy import load_model
    from luffy.reward import verify
    from luffy.rollout import Sampling, TransformersEngine

    config = Config()
    loaded = load_model(config.model, config.policy)
    engine = TransformersEngine(loaded.model, eos_ids=loaded.eos_ids, pad_id=loaded.pad_id)
    problem = evaluation_problems("worked")[0]
    prompt = encode_prompt(problem, loaded.tokenizer, config.data.template)
    began = time.perf_counter()
    ((completion,),) = engine.generate([prompt], 1, Sampling(max_tokens=TOKENS, temperature=0.0, seed=0))
    seconds = time.perf_counter() - began
    text = loaded.tokenizer.decode(completion.token_ids, skip_special_tokens=True)
    return verify("exact", text, problem.answer).correct, len(completion.token_ids), seconds


def reach_hub(timeout: float = 5.0) -> Finding:
    """Whether the hub answers. timeout: in seconds."""
    import httpx2

    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    token = "a token is set" if os.environ.get("HF_TOKEN") else "no HF_TOKEN; gated models and sets need one"
    try:
        status = httpx2.head(f"{address}/api/models", timeout=timeout, follow_redirects=True).status_code
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        remedy = "models and data must lie in folders, or in the hub's cache"
        return Finding("trial", "hub", f"does not answer ({type(error).__name__})", "optional", remedy)
    return Finding("trial", "hub", f"answers with status {status}; {token}")
