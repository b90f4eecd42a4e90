"""The section of several processes: what is split over them, by which library, and what goes together."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from luffy.config.sections import Positive, Section


class ParallelConfig(Section):
    """How several processes train together (docs/processes.md)."""

    timeout: Positive = Field(1800.0, description="Seconds a process waits for the others before the run stops.")
    sharding: Literal["none", "full", "zero1", "zero2", "zero3"] = Field(
        "none",
        description="full: weights, gradients and AdamW's moments are split over the processes (FSDP2); none: each "
        "process holds all of them (DDP). By DeepSpeed's ZeRO: zero1: the moments are split; zero2: gradients, too; "
        "zero3: weights, too.",
    )
    param_dtype: Literal["none", "bfloat16"] = Field(
        "none",
        description="With sharding=full: type in which weights are gathered and multiplied; none: their own. Gradients "
        "are summed in float32, the weights that the optimizer changes keep `policy.dtype`.",
    )
    offload: bool = Field(
        False,
        description="With sharding=full: weights, gradients and moments lie in the host's memory, where the optimizer "
        "works; a layer's weights go to the GPU while it computes. With ZeRO: the moments, and what they are split "
        "with.",
    )
    checkpoint: Literal["whole", "sharded"] = Field(
        "whole",
        description="With sharding=full: whole checkpoints are gathered and written by the first process; of sharded "
        "ones each process writes its part, into a folder that all of them must see.",
    )

    @property
    def zero_stage(self) -> int:
        """The stage of DeepSpeed's ZeRO; 0: it is not used."""
        return int(self.sharding[4:]) if self.sharding.startswith("zero") else 0

    @property
    def splits_weights(self) -> bool:
        """Whether a process holds parts of the weights between the steps."""
        return self.sharding in ("full", "zero3")

    @model_validator(mode="after")
    def _sharded(self) -> ParallelConfig:
        if self.sharding == "none" and self.offload:
            raise ValueError("offload puts what is split on the host: set parallel.sharding to full, or to zero2")
        if self.zero_stage and self.param_dtype != "none":
            raise ValueError(
                "param_dtype is that of weights that FSDP2 splits: set parallel.sharding to full, or multiply in "
                "bfloat16 by policy.autocast=bfloat16"
            )
        if self.zero_stage and self.checkpoint != "whole":
            raise ValueError(
                "checkpoint=sharded is written from what FSDP2 splits (DeepSpeed's own is a pickle): set "
                "parallel.sharding to full, or leave parallel.checkpoint at whole"
            )
        if self.sharding == "none" and self.param_dtype != "none":
            raise ValueError("param_dtype is that of split weights: set parallel.sharding to full")
        if self.sharding == "none" and self.checkpoint != "whole":
            raise ValueError("checkpoint=sharded holds split weights: set parallel.sharding to full")
        return self
