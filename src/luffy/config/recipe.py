"""The recipe as a whole, and what must hold between its sections."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from luffy.config.names import nearest
from luffy.config.parallel import ParallelConfig
from luffy.config.sections import (
    MINIATURE,
    AdapterConfig,
    Count,
    DataConfig,
    EvaluationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    PolicyConfig,
    RewardConfig,
    RolloutConfig,
    Section,
    SFTConfig,
    Trackers,
)
from luffy.formats import CompletionFormat


class Config(Section):
    """Everything that defines a run."""

    method: str = Field("luffy", description="One of METHODS: luffy, on_policy, mixed, sft, sft_rl, rl_sft, ...")
    model: str = Field(MINIATURE, description="Model folder or hub name; built in: miniature, miniature-eager.")
    output: str = Field("runs/latest", min_length=1, description="The run folder.")
    seed: int = Field(0, ge=0, description="Seed of everything that is drawn.")
    steps: Count = Field(100, description="Steps of the last phase: RL steps, or SFT steps for `sft`.")
    problems_per_step: Count = Field(16, description="Problems drawn a step, hence groups.")
    updates_per_step: Count = Field(1, description="Optimizer steps a batch of groups is split into (the paper: 2).")
    checkpoint_every: int = Field(0, ge=0, description="Steps between checkpoints; 0: only at the end of a phase.")
    keep_checkpoints: Count = Field(2, description="Newest checkpoints that are kept.")
    keep_best_checkpoints: int = Field(
        0, ge=0, description="Checkpoints kept beside them for the best accuracy on the first set of evaluation.watch."
    )
    rollouts_every: int = Field(10, ge=0, description="Steps between saved rollouts; 0: never.")
    tracker: Trackers = Field(
        (),
        description="Where metrics go besides metrics.jsonl: tensorboard, wandb, trackio, mlflow, or a list of them.",
    )
    processes: Count | None = Field(
        None, description="Training processes on this machine; empty: as many as were started (accelerate, torchrun)."
    )
    parallel: ParallelConfig = Field(default_factory=ParallelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    reward: RewardConfig = Field(default_factory=RewardConfig)
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    sft: SFTConfig = Field(default_factory=SFTConfig)
    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    methods: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Per method: `dotted.key: value` that replace the above when it is chosen."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        from luffy.algorithm.methods import METHODS

        if self.method not in METHODS:
            raise ValueError(f"unknown method {self.method!r}.{nearest(self.method, METHODS)}")
        if METHODS[self.method].traces != "none" and self.rollout.traces == 0:
            raise ValueError(f"method {self.method!r} learns from traces, but rollout.traces is 0")
        if self.rollout.ahead and self.objective.importance_cap is None:
            raise ValueError(
                "rollout.ahead=1 learns from rollouts of the policy one step before, which truncated importance "
                "sampling corrects: set objective.importance_cap, for example to 2"
            )
        if self.keep_best_checkpoints and not (self.evaluation.watch and self.evaluation.every):
            raise ValueError(
                f"keep_best_checkpoints={self.keep_best_checkpoints} needs a score to go by: set evaluation.watch and "
                "evaluation.every, and checkpoint_every to the same number of steps"
            )
        if self.parallel.splits_weights and self.rollout.vllm.lora:
            raise ValueError(
                "rollout.vllm.lora sends an adapter that is whole in one process: leave it out, so that the adapter is "
                "merged, or set parallel.sharding to none"
            )
        if self.parallel.sharding != "none" and self.adapter.quantize:
            raise ValueError(
                "adapter.quantize packs weights that parallel.sharding would split: leave one of the two out"
            )
        if self.parallel.zero_stage and self.policy.dtype != "float32":
            raise ValueError(
                f"parallel.sharding={self.parallel.sharding} trains weights in float32: leave policy.dtype at it "
                "(policy.autocast=bfloat16 multiplies in bfloat16), or set parallel.sharding to full"
            )
        if self.parallel.sharding == "zero3" and self.adapter.rank is not None:
            raise ValueError(
                "parallel.sharding=zero3 does not split a model with an adapter in it: set parallel.sharding to full, "
                "zero1 or zero2"
            )
        if self.rollout.vllm.lora and self.adapter.rank is None:
            raise ValueError("rollout.vllm.lora sends an adapter by itself: set adapter.rank, or leave it out")
        groups = self.problems_per_step
        if (self.processes or 1) > groups:
            raise ValueError(
                f"processes ({self.processes}) is larger than problems_per_step ({groups}): some would never generate"
            )
        if self.updates_per_step > groups:
            raise ValueError(f"updates_per_step ({self.updates_per_step}) is larger than problems_per_step ({groups})")
        return self


def completion_format(config: Config) -> CompletionFormat:
    """What a completion looks like by the configuration; whether the prompt opens the thought, a prompt must show."""
    return CompletionFormat(
        opening=config.data.thought_opening,
        closing=config.data.thought_closing,
        gated=config.reward.format == "closed_thought",
        answer_marker="\\boxed" if config.data.template in ("think", "qwen_math") else "",
    )
