"""Generation on the miniature against bare forward passes with a key-value cache for the same tokens.

`python benchmarks/generation.py`. Goal: at most 1.5 times the bare passes. The bare passes prefill each prompt once,
repeat the cache for the group and feed given tokens: no sampling, no log-probs, no stopping.
"""

from __future__ import annotations

from functools import partial

import torch
from measuring import ratio, report, seconds

from luffy.config import PolicyConfig
from luffy.data import encode_prompt
from luffy.data.miniature import evaluation_problems
from luffy.policy import LoadedModel, load_model
from luffy.rollout import Sampling, TransformersEngine

PROMPTS, GROUP, GOAL = 16, 8, 1.5


@torch.no_grad()
def bare_passes(loaded: LoadedModel, prompts: list[list[int]], length: int) -> None:
    """Prefill and `length - 1` decode steps of all rows, and nothing else."""
    longest = max(map(len, prompts))
    input_ids = torch.tensor([[loaded.pad_id] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = (torch.arange(longest) >= torch.tensor([longest - len(prompt) for prompt in prompts])[:, None]).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    output = loaded.model(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1
    )
    cache = output.past_key_values
    cache.batch_repeat_interleave(GROUP)
    mask = mask.repeat_interleave(GROUP, dim=0)
    position = mask.sum(dim=1, keepdim=True)
    token = torch.full((len(prompts) * GROUP, 1), 5)
    for _ in range(length - 1):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        loaded.model(input_ids=token, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True)
        position = position + 1


def main() -> None:
    """Measure equal lengths, where no row can leave early."""
    loaded = load_model("miniature", PolicyConfig())
    problems = evaluation_problems("hard", PROMPTS)
    prompts = [list(encode_prompt(problem, loaded.tokenizer, "none")) for problem in problems]
    never = TransformersEngine(loaded.model, eos_ids=[-1], pad_id=loaded.pad_id)  # no token ends a completion
    rows = []
    for length in (40, 84):
        ours, bare = seconds(
            partial(never.generate, prompts, GROUP, Sampling(length)),
            partial(bare_passes, loaded, prompts, length),
        )
        measured = ratio(ours, bare)
        rows.append(
            {
                "rows": PROMPTS * GROUP,
                "tokens each": length,
                "ours, s": sorted(ours)[len(ours) // 2],
                "bare, s": sorted(bare)[len(bare) // 2],
                "ours / bare": measured,
                "goal": f"<= {GOAL}",
                "reached": "yes" if measured["median"] <= GOAL else "no",
            }
        )
    report("generation", rows)


if __name__ == "__main__":
    main()
