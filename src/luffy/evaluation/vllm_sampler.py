"""Answers of a model in vLLM, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luffy.config import Config
from luffy.data.prompts import encode_prompts
from luffy.errors import ModelError, first_line
from luffy.evaluation.samplers import Sample
from luffy.policy import load_tokenizer, model_folder
from luffy.rollout import Sampling
from luffy.rollout.vllm_settings import context_overrides, import_vllm
from luffy.types import Problem


class VllmSampler:
    """vLLM with continuous batching: the way to evaluate a large model on a GPU."""

    def __init__(self, model: str, config: Config) -> None:
        """model: a folder or hub name. Raises ConfigError without vLLM, ModelError where it cannot load the model."""
        vllm = import_vllm("evaluation.engine=vllm")
        self.template = config.data.template
        policy = config.policy
        self.tokenizer = load_tokenizer(model, trust_remote_code=policy.trust_remote_code)
        longest = (config.evaluation.max_tokens or config.rollout.max_tokens) + config.data.max_prompt_tokens
        try:
            self._llm: Any = vllm.LLM(
                model_folder(model),
                dtype=policy.dtype,
                max_model_len=longest,
                trust_remote_code=policy.trust_remote_code,
                hf_overrides=context_overrides(model, policy),
            )
        except Exception as error:  # of any of its many parts
            raise ModelError(f"{model}: vLLM cannot load it ({first_line(error)}).") from None
        self._parameters = vllm.SamplingParams

    def sample(self, problems: Sequence[Problem], n: int, sampling: Sampling) -> list[list[Sample]]:
        """See `Sampler.sample`. Reproducible with one vLLM version on one kind of device, as vLLM promises it."""
        prompts = encode_prompts(problems, self.tokenizer, self.template)
        settings = [
            self._parameters(
                n=n,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=sampling.seed + place,
            )
            for place in range(len(prompts))
        ]
        outputs = self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], settings, use_tqdm=False)
        return [[self._sample(one) for one in output.outputs] for output in outputs]

    def _sample(self, output: Any) -> Sample:
        ids = list(output.token_ids)
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return Sample(text, len(ids), output.finish_reason != "length")
