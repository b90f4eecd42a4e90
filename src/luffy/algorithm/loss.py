import torch
from luffy.algorithm.shaping import SHAPINGS
def token_weights(mask,*,normalization,max_length):
    batch=mask[...,0].numel(); m=mask.to(torch.float64)
    if normalization=="constant": return m/(batch*max_length)
    if normalization=="token": return m/m.sum().clamp(min=1)
    return m/(batch*m.sum(-1,keepdim=True).clamp(min=1))
def surrogate(logprobs,behavior,adv,off,*,shaping="none",sampled_shaping="none",gamma=0.1,exponent=0.5,clip_range=None):
    ratio=torch.exp(logprobs-behavior)
    t=SHAPINGS[shaping](ratio,gamma=gamma,exponent=exponent)*adv
    if sampled_shaping!="none":
        f=SHAPINGS[sampled_shaping]
        ratio=f(logprobs.exp(),gamma=gamma)/f(behavior.exp(),gamma=gamma)
    s=ratio*adv
    if clip_range is not None: s=torch.minimum(s,ratio.clamp(1-clip_range,1+clip_range)*adv)
    return torch.where(off,t,s)
def policy_loss(logprobs,behavior_logprobs,advantages,off_policy,mask,*,shaping,gamma,clip_range,normalization,max_length,exponent=0.5,sampled_shaping="none",weights=None,entropy=None,entropy_coefficient=0.0,reference_logprobs=None,kl_coefficient=0.0,importance_weights=None):
    if weights is None: weights=token_weights(mask,normalization=normalization,max_length=max_length)
    s=surrogate(logprobs,behavior_logprobs.detach() if behavior_logprobs is logprobs else behavior_logprobs,advantages,off_policy,shaping=shaping,sampled_shaping=sampled_shaping,gamma=gamma,exponent=exponent,clip_range=clip_range)
    loss=-torch.where(mask.bool(),s*weights,0.).sum()
    if entropy is not None: loss=loss-entropy_coefficient*torch.where(mask.bool(),entropy*weights,0.).sum()
    return loss,{}
def supervised_loss(logprobs,mask,*,weights=None):
    return -torch.where(mask.bool(),logprobs*weights,0.).sum()
def truncated_importance_weights(a,b,cap): return torch.exp(a-b).clamp(max=cap)
