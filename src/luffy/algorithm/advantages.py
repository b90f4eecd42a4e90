import torch
def group_advantages(rewards, off_policy, *, baseline="group", scale="none"):
    r=torch.as_tensor(rewards); o=torch.as_tensor(off_policy).bool()
    base = r if baseline=="group" else r[~o]
    mean = base.mean() if base.numel()>1 else torch.zeros_like(r.sum())
    a = r-mean
    if scale=="std" and base.numel()>1:
        s=base.std(); a=a/((s if s>0 else torch.ones_like(s))+1e-6)
    return a
