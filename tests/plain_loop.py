"""The loss of LUFFY as the paper has it, a row at a time on whole logits: what the fast paths are compared with."""

import torch

GAMMA = 0.1


def plain_loss(model, groups, most_tokens, behavior=None):
    """-1 / (rollouts L) sum of f(p) A: f(p) = p / (p + gamma) on a trace, p / p_old elsewhere.

    most_tokens: L. behavior: `engine` for a p_old of what sampled; by default it is the policy, and the ratio 1.
    """
    loss = 0.0
    for group in groups:
        mean = sum(one.reward for one in group.rollouts) / len(group.rollouts)
        for one in group.rollouts:
            row = torch.tensor([[*one.prompt_ids, *one.completion_ids]])
            logits = model(input_ids=row).logits[0, len(one.prompt_ids) - 1 : -1]
            logprobs = logits.log_softmax(-1).gather(-1, torch.tensor(one.completion_ids)[:, None])[:, 0]
            p = logprobs.exp()
            wrote = torch.tensor(one.behavior_logprobs, dtype=p.dtype).exp() if behavior == "engine" else p.detach()
            surrogate = p / (p + GAMMA) if one.off_policy else p / wrote
            loss = loss - (one.reward - mean) * surrogate.sum() / (len(groups) * len(group.rollouts) * most_tokens)
    return loss
