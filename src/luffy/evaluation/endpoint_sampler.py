"""Answers of a model behind an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Sequence

from luffy.config import Config
from luffy.data.prompts import messages_for_server
from luffy.errors import ConfigError
from luffy.evaluation.samplers import Sample
from luffy.rollout import Sampling
from luffy.rollout.endpoint import EndpointClient, Question, UnansweredError
from luffy.types import Problem


class EndpointSampler:
    """Asks a server, one request a sample."""

    def __init__(self, model: str, config: Config) -> None:
        """model: the server's name of it. Raises ConfigError for an address that is none."""
        settings = config.evaluation
        if not settings.endpoint:
            raise ConfigError("evaluation.engine=endpoint needs evaluation.endpoint=http://HOST:PORT/v1")
        self.template = config.data.template
        self.client = EndpointClient(
            settings.endpoint, model, key_variable=settings.api_key_variable, concurrency=settings.concurrency
        )

    def sample(self, problems: Sequence[Problem], n: int, sampling: Sampling) -> list[list[Sample]]:
        """See `Sampler.sample`. Raises UnansweredError when a question gets no usable answer: none may be missing."""
        questions = [
            Question(messages_for_server(problem, self.template), sampling.seed + place * n + copy)
            for place, problem in enumerate(problems)
            for copy in range(n)
        ]
        samples: list[Sample | None] = [None] * len(questions)
        for index, reply in self.client.ask_all(questions, sampling):
            if isinstance(reply, UnansweredError):
                raise reply
            samples[index] = Sample(reply.text, reply.tokens, reply.finished)
        whole = [sample for sample in samples if sample is not None]
        return [whole[start : start + n] for start in range(0, len(whole), n)]
