"""A vLLM server that several training processes generate with: each asks it for its share of the problems.

The first process opens it and sends the weights; the others wait until it has, so that none generates with old ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from luffy.config import Config
from luffy.policy import LoadedModel
from luffy.policy.sharding import is_split
from luffy.rollout import Sampling
from luffy.rollout.vllm_server import Opened, VllmServerEngine
from luffy.rollout.vllm_settings import exhausting, named_weights
from luffy.training.world import World
from luffy.types import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class SharedServerEngine:
    """A `StreamingEngine` on the server of a run of several processes."""

    def __init__(self, config: Config, loaded: LoadedModel, world: World) -> None:
        """Raises on all processes what opening the server raises on the first (see `VllmServerEngine`)."""
        self._world = world
        turn = partial(world.turn, "weights")
        self._engine: VllmServerEngine | None = None

        def open_server() -> Opened:
            self._engine = VllmServerEngine(config, loaded, turn=turn)
            return self._engine.opened

        opened = world.from_main(open_server)
        self._own = self._engine or VllmServerEngine(config, loaded, opened=opened, turn=turn)

    def generate(self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Completion]]:
        """See `VllmServerEngine.generate`; each process asks for what it needs."""
        return self._own.generate(prompt_ids, n, sampling)

    def stream(
        self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """See `VllmServerEngine.stream`; each process asks for what it needs."""
        return self._own.stream(prompt_ids, n, sampling)

    def update_weights(self, policy: PreTrainedModel) -> None:
        """Send the weights from the first process; all of them call it, and go on when the server has the weights.

        Weights that are split are gathered by all, one after the other. Raises on all what it raises on the first.
        """
        if not self._world.main and is_split(policy):
            with exhausting(named_weights(policy)):
                pass
        self._own.follow(self._world.from_main(partial(self._send, policy)))

    def close(self) -> None:
        """Close what this process has opened; the first one ends the server that it has started."""
        self._own.close()

    def _send(self, policy: PreTrainedModel) -> Opened:
        self._own.update_weights(policy)
        return self._own.opened
