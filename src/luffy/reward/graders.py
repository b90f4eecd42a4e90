"""The verifiers of a run or an evaluation: the configured one, and those of benchmarks with a kind of their own."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from luffy.config import Config
from luffy.reward.pool import VerifierPool
from luffy.reward.verifiers import RewardFunction


class Graders:
    """A verifier pool for each kind that is asked for, started when it is first asked for; a context manager."""

    def __init__(self, config: Config, reward: RewardFunction | None = None) -> None:
        """reward: replaces the configured kind, not the kinds of benchmarks. Raises ConfigError for an unknown kind."""
        self._config = config
        self._pools = {config.reward.kind: VerifierPool.of(config, reward)}

    def pool(self, kind: str | None = None) -> VerifierPool:
        """The pool of a kind; None: of the configured one."""
        kind = kind or self._config.reward.kind
        if kind not in self._pools:
            settings = self._config.reward.model_copy(update={"kind": kind})
            self._pools[kind] = VerifierPool.of(self._config.model_copy(update={"reward": settings})).__enter__()
        return self._pools[kind]

    def __enter__(self) -> Self:
        self.pool().__enter__()
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pool in self._pools.values():
            pool.__exit__(error, value, traceback)
