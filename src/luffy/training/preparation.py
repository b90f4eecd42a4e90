"""What a run needs before its first step: the problems, the model that generates, the batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from luffy.algorithm import METHODS
from luffy.config import Config, completion_format
from luffy.data import EncodedProblem, EncodedTrace, LoadedProblems, prepare_problems
from luffy.errors import DataError, ModelError, first_line
from luffy.policy import LoadedModel, check_context
from luffy.policy.adapters import plain_copy
from luffy.policy.precision import Autocast
from luffy.reward import Verdict
from luffy.rollout import Engine, TransformersEngine
from luffy.training.checkpoint import Progress, read_ahead
from luffy.training.collector import Batch, Collector
from luffy.training.draw import ProblemRow
from luffy.training.groups import Submit
from luffy.training.plan import plan_phases
from luffy.training.world import ALONE, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

VerifyAll = Callable[[Sequence[tuple[str, str]]], list[Verdict]]


def prepare_data(
    config: Config, source: LoadedProblems, loaded: LoadedModel, verify: VerifyAll
) -> tuple[list[EncodedProblem], list[tuple[EncodedProblem, EncodedTrace]]]:
    """The problems as tokens, and each of their traces with its problem; what was left out is logged.

    Raises DataError when no problem is left, or no trace for a method that learns from traces.
    """
    data = config.data
    prepared = prepare_problems(
        source,
        loaded.tokenizer,
        template=data.template,
        max_prompt_tokens=data.max_prompt_tokens,
        max_completion_tokens=config.rollout.max_tokens,
        verify=verify,
        on_long_prompt=data.on_long_prompt,
        on_bad_trace=data.on_bad_trace,
        on_long_trace=data.on_long_trace,
        layout=completion_format(config),
    )
    for line in prepared.report.lines():
        logger.log(logging.WARNING if prepared.report.findings else logging.INFO, line)
    if not prepared.problems:
        raise DataError(f"{data.train}: no problem is left to train on.")
    longest = max(len(problem.prompt_ids) for problem in prepared.problems)
    check_context(loaded.model, longest, config.rollout.max_tokens)
    traces = [(problem, trace) for problem in prepared.problems for trace in problem.traces]
    if METHODS[config.method].learns_from_traces and not traces:
        raise DataError(
            f"{data.train}: method {config.method!r} learns from traces, and no problem has one that can be used. "
            + prepared.report.why_no_trace()
        )
    return prepared.problems, traces


def open_engine(
    config: Config, loaded: LoadedModel, autocast: Autocast, *, sharded: bool = False, world: World = ALONE
) -> Engine:
    """What generates: on the policy itself, or on a copy. autocast: type of the update's products, if not its own.

    sharded: the policy will be split over processes, so that none could generate with it by itself.
    """
    if config.rollout.engine == "vllm":
        from luffy.rollout.vllm_engine import VllmEngine

        return VllmEngine(config, loaded)
    if config.rollout.engine == "vllm_server":
        from luffy.rollout.vllm_server import VllmServerEngine
        from luffy.training.shared_server import SharedServerEngine

        return VllmServerEngine(config, loaded) if world.size == 1 else SharedServerEngine(config, loaded, world)
    return TransformersEngine(
        _generating_model(config, loaded.model, autocast, sharded),
        eos_ids=loaded.eos_ids,
        pad_id=loaded.pad_id,
        batch_tokens=config.rollout.batch_tokens,
    )


def open_collector(
    config: Config,
    problems: Sequence[EncodedProblem],
    progress: Progress,
    checkpoint: Path | None,
    *,
    engine: Engine,
    submit: Submit,
    loaded: LoadedModel,
    world: World = ALONE,
) -> Collector:
    """Makes the batches of the reinforcement phase, from where the progress says that it is.

    Raises RunError when the checkpoint's batch cannot be read.
    """
    least = config.problems_per_step
    row = ProblemRow(
        problems,
        seed=config.seed,
        least=least,
        drop_solved=config.data.drop_solved,
        # a checkpoint of an earlier version does not say how many were drawn: it was the same number every step
        position=progress.problems_drawn or max(0, progress.step - plan_phases(config)[-1].before) * least,
        visits=progress.solved,
    )
    collector = Collector(
        row,
        engine=engine,
        submit=submit,
        tokenizer=loaded.tokenizer,
        config=config,
        vocabulary=loaded.model.get_input_embeddings().num_embeddings,
        world=world.apart(),
    )
    record = world.from_main(lambda: read_ahead(checkpoint)) if checkpoint else None
    collector.ready = Batch.of(record, problems) if record else None
    return collector


def _generating_model(config: Config, policy: PreTrainedModel, autocast: Autocast, sharded: bool) -> PreTrainedModel:
    """The policy itself, or a copy: of another type, whole beside a split policy, or generating while it changes."""
    wanted = config.rollout
    in_bfloat16 = autocast == "bfloat16" or (sharded and config.parallel.param_dtype == "bfloat16")
    by_products = torch.bfloat16 if in_bfloat16 else policy.dtype
    dtype = by_products if wanted.dtype == "auto" else getattr(torch, wanted.dtype)
    if not wanted.ahead and not sharded and dtype == policy.dtype:
        return policy
    try:
        device = torch.device(wanted.device) if wanted.device else policy.device
        model = plain_copy(policy).to(device, dtype)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"rollout.device={wanted.device} cannot be used: {first_line(error)}") from None
    if wanted.ahead and model.device == policy.device:
        logger.warning(
            "rollout.ahead=1: generating and updating share %s, so a step is hardly faster than one after the "
            "other. Where there is a second GPU, say rollout.device=cuda:1.",
            policy.device,
        )
    return model
