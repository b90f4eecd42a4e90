"""Checkpoints: enough to continue a run as if it had never stopped.

    RUN/checkpoints/step-000050/model/               a Hugging Face folder, or
    RUN/checkpoints/step-000050/adapter/             the adapter's weights, where one is trained
    RUN/checkpoints/step-000050/optimizer.safetensors  AdamW's moments
    RUN/checkpoints/step-000050/parts/                 with `parallel.checkpoint=sharded`: in place of the above
    RUN/checkpoints/step-000050/ahead.json             the next step's batch, where it was collected ahead
    RUN/checkpoints/step-000050/state.json             step, counters
    RUN/checkpoints/step-000050/SHA256SUMS             digests of the above (`sha256sum -c SHA256SUMS` checks them, too)

Random numbers need no state: what is drawn follows from the seed, the step and the place in the row of problems.
Nothing is pickled. A checkpoint is written beside its place, flushed to the disk, and renamed: one that is there is
whole, unless the disk damages it later, which its digests show.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from luffy.errors import RunError
from luffy.files import abandon_folder, begin_folder, put_folder, write_folder_whole, writing
from luffy.policy import LoadedModel
from luffy.policy.adapters import has_adapter, load_adapter, save_adapter, skeleton
from luffy.training.learner import Learner
from luffy.training.parts import names_in, read_parts, write_parts
from luffy.training.world import ALONE, World, in_order

logger = logging.getLogger(__name__)

DIGESTS = "SHA256SUMS"
PARTS = "parts"


@dataclass(slots=True)
class Progress:
    """How far a run has come."""

    step: int = 0  # steps done, over all phases
    tokens_trained: int = 0
    tokens_generated: int = 0
    seconds: float = 0.0
    verifier_failures: int = 0
    problems_drawn: int = 0  # place in the row of problems
    solved: dict[str, int] = field(default_factory=dict)  # problem id: visits in a row with nothing but right rollouts
    skipped_in_a_row: int = 0  # updates that were not finite, up to now


@dataclass(frozen=True, slots=True)
class Retention:
    """Which checkpoints stay."""

    newest: int  # so many of the newest
    best: int = 0  # and so many of those with the best score
    scores: Mapping[int, float] = field(default_factory=dict)  # step: what was measured there, the higher the better

    def leaving(self, checkpoints: list[Path]) -> list[Path]:
        """Those of `checkpoints`, oldest first, that need not be kept; of two equal scores the later is better."""
        scored = [path for path in checkpoints if _step_of(path) in self.scores]
        best = sorted(scored, key=lambda path: (self.scores[_step_of(path)], _step_of(path)))[len(scored) - self.best :]
        staying = {*checkpoints[-self.newest :], *best}
        return [path for path in checkpoints if path not in staying]


@dataclass(frozen=True, slots=True)
class WholeState:
    """What was learned, each tensor whole; empty in a process that does not write."""

    weights: Mapping[str, Tensor]  # those that training changes, by name
    moments: Mapping[str, Tensor]  # AdamW's, by `index.name`; index: place of the parameter in the optimizer

    @classmethod
    def of(cls, learner: Learner) -> WholeState:
        """Gather it; where the weights are split over processes, all of them take part."""
        return cls(learner.wrapper.trained_weights(), learner.wrapper.whole_moments(learner.optimizer))


def save_checkpoint(
    run: Path,
    loaded: LoadedModel,
    state: WholeState,
    progress: Progress,
    keep: Retention,
    ahead: Mapping[str, Any] | None = None,
) -> None:
    """Write `checkpoints/step-N` unless it is there already, then remove those that need not be kept.

    ahead: record of the next step's batch, if it is there already.
    Raises RunError when it cannot be written; earlier checkpoints are then untouched.
    """
    folder = _place(run, progress)
    if folder in list_checkpoints(run):
        return

    def fill(folder: Path) -> None:
        if has_adapter(loaded.model):
            save_adapter(folder / "adapter", loaded.model, state.weights, "")
        else:
            save_model(folder / "model", loaded, state.weights)
        save_file(dict(state.moments), folder / "optimizer.safetensors")
        _write_records(folder, progress, ahead)
        write_digests(folder)

    write_folder_whole(folder, fill)
    _remove_those_leaving(run, keep)


def save_in_parts(
    run: Path, learner: Learner, progress: Progress, keep: Retention, ahead: Mapping[str, Any] | None = None
) -> None:
    """The same by all processes together: each writes what it holds of the weights and moments, and none gathers them.

    Raises RunError on all of them where one cannot write; earlier checkpoints are then untouched.
    """
    world, folder = learner.world, _place(run, progress)
    if world.from_main(lambda: folder in list_checkpoints(run)):
        return

    def begin() -> Path:
        beside = begin_folder(folder)
        with writing(folder):
            (beside / PARTS).mkdir()
            _write_records(beside, progress, ahead)
        return beside

    try:
        beside = world.from_main(begin)
        with writing(folder), world.lost_are_named():
            write_parts(beside / PARTS, _weights(learner.policy) | _moments(learner), world)
        write_digests(beside, world)
        world.from_main(lambda: put_folder(folder))
    except BaseException:
        if world.main:
            abandon_folder(folder)
        raise
    if world.main:
        _remove_those_leaving(run, keep)


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, by their digests; None where they are as they were written."""
    try:
        lines = (checkpoint / DIGESTS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # written by an earlier version
        logger.warning("%s has no %s: its files are not checked.", checkpoint, DIGESTS)
        return None
    except (OSError, UnicodeDecodeError) as error:
        return f"{DIGESTS} cannot be read: {error}"
    listed = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    learned = any(name == "optimizer.safetensors" or name.startswith(f"{PARTS}/") for name in listed)
    if not learned or "state.json" not in listed:
        return f"{DIGESTS} is not whole"
    for name, digest in listed.items():
        try:
            if _digest(checkpoint / name) != digest:
                return f"{name} is not as it was written"
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            return f"{name} cannot be read: {getattr(error, 'strerror', None) or error}"
    return None


def take_up_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint whose files are as they were written; None where there is no checkpoint at all.

    Damaged ones are named in a warning and set aside. Raises RunError when all of them are damaged.
    """
    found = list_checkpoints(run)
    for checkpoint in reversed(found):
        damage = find_damage(checkpoint)
        if damage is None:
            return checkpoint
        aside = _set_aside(checkpoint, ".damaged")
        logger.warning("%s is damaged (%s) and is not used; it is now %s.", checkpoint, damage, aside.name)
    if found:
        raise RunError(
            f"{run}: all {len(found)} checkpoints are damaged, so the run cannot go on. "
            "Delete the folder or choose another output= to begin anew."
        )
    return None


def describe_last(run: Path) -> str:
    """A sentence that names the newest whole checkpoint."""
    newest = find_checkpoint(run)
    return f"The last good checkpoint is {newest}." if newest else "There is no checkpoint yet."


def save_model(folder: Path, loaded: LoadedModel, weights: Mapping[str, Tensor]) -> None:
    """Write model and tokenizer as a Hugging Face folder.

    weights: the model's, by name, an adapter merged into them, each of them whole.
    """
    plain = skeleton(loaded.model) if has_adapter(loaded.model) else loaded.model
    plain.save_pretrained(folder, state_dict=dict(weights))
    loaded.tokenizer.save_pretrained(folder)


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    named = [path for path in run.glob("checkpoints/step-*") if path.name.removeprefix("step-").isdecimal()]
    return sorted((path for path in named if (path / "state.json").is_file()), key=_step_of)


def find_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint."""
    found = list_checkpoints(run)
    return found[-1] if found else None


def read_progress(checkpoint: Path) -> Progress:
    """The counters of a checkpoint. Raises RunError when they cannot be read."""
    with _reading(checkpoint):
        return TypeAdapter(Progress).validate_json((checkpoint / "state.json").read_bytes())


def read_ahead(checkpoint: Path) -> dict[str, Any] | None:
    """The record of the next step's batch, if the checkpoint has one. Raises RunError when it cannot be read."""
    path = checkpoint / "ahead.json"
    if not path.exists():
        return None
    with _reading(checkpoint):
        return dict(json.loads(path.read_text()))


def load_weights(checkpoint: Path, loaded: LoadedModel, world: World = ALONE) -> None:
    """Put the weights of a checkpoint into the model; the first process reads whole ones for all.

    Raises RunError when they cannot be read.
    """
    model = loaded.model
    if _is_in_parts(checkpoint, world):
        world.together(lambda: _read_parts(checkpoint, _weights(model)))
        return

    def read() -> dict[str, Tensor]:
        with _reading(checkpoint):
            if has_adapter(model):
                load_adapter(checkpoint / "adapter", model)
                return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
            saved = type(model).from_pretrained(
                checkpoint / "model", dtype=model.dtype, use_safetensors=True, local_files_only=True
            )
            return dict(saved.state_dict())

    own = model.state_dict()
    lacking = set() if has_adapter(model) else set(own)
    for name, weight in world.tensors_from_main(read):
        lacking.discard(name)
        with _reading(checkpoint):
            if own[name].shape != weight.shape:  # copying would repeat a smaller one
                raise ValueError(f"{name} is {[*weight.shape]} in place of {[*own[name].shape]}")
            own[name].copy_(weight)
    if lacking:
        raise RunError(f"{checkpoint}: {len(lacking)} weights are missing, {min(lacking)} for one.")


def load_optimizer(checkpoint: Path, learner: Learner) -> None:
    """Put AdamW's moments of a checkpoint into the learner's optimizer. Raises RunError when they cannot be read."""
    if _is_in_parts(checkpoint, learner.world):
        learner.world.together(lambda: _load_moments_in_parts(checkpoint, learner))
        return

    def read() -> dict[str, Tensor]:
        with _reading(checkpoint):
            return load_file(checkpoint / "optimizer.safetensors")

    learner.wrapper.put_moments(learner.optimizer, learner.world.tensors_from_main(read))


def _load_moments_in_parts(checkpoint: Path, learner: Learner) -> None:
    with _reading(checkpoint):
        saved = names_in(checkpoint / PARTS)
    for index, parameter in enumerate(learner.wrapper.parameters):
        if f"moments.{index}.step" in saved:
            learner.optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter.detach()),
                "exp_avg_sq": torch.zeros_like(parameter.detach()),
            }
    _read_parts(checkpoint, _moments(learner))


def _read_parts(checkpoint: Path, tensors: Mapping[str, Tensor]) -> None:
    with _reading(checkpoint):
        read_parts(checkpoint / PARTS, tensors)


def _is_in_parts(checkpoint: Path, world: World) -> bool:
    """Whether it was written by several processes, as the first one sees it."""
    return world.from_main(lambda: (checkpoint / PARTS).is_dir())


def _weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """What a checkpoint in parts holds of the model: its weights, tied ones once, or those of the adapter it trains."""
    adapted = has_adapter(model)
    held: dict[str, Tensor] = model.state_dict(keep_vars=True)
    once = {id(weight): (name, weight) for name, weight in held.items() if weight.requires_grad or not adapted}
    return {f"weights.{name}": weight.detach() for name, weight in once.values()}


def _moments(learner: Learner) -> dict[str, Tensor]:
    """What it holds of AdamW's moments."""
    return {
        f"moments.{index}.{name}": value.detach()
        for index, parameter in enumerate(learner.wrapper.parameters)
        for name, value in learner.optimizer.state.get(parameter, {}).items()
    }


def _write_records(folder: Path, progress: Progress, ahead: Mapping[str, Any] | None) -> None:
    if ahead is not None:
        (folder / "ahead.json").write_text(json.dumps(ahead), encoding="utf-8")
    (folder / "state.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")


def _remove_those_leaving(run: Path, keep: Retention) -> None:
    for old in keep.leaving(list_checkpoints(run)):
        shutil.rmtree(_set_aside(old, ".part"), ignore_errors=True)  # one that is half deleted must not look whole


def _place(run: Path, progress: Progress) -> Path:
    return run / "checkpoints" / f"step-{progress.step:06d}"


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _set_aside(checkpoint: Path, ending: str) -> Path:
    """Rename a checkpoint so that it is none any more. Returns its new path."""
    aside = checkpoint.with_name(checkpoint.name + ending)
    with writing(checkpoint):
        shutil.rmtree(aside, ignore_errors=True)
        return checkpoint.rename(aside)


def write_digests(folder: Path, world: World = ALONE) -> None:
    """List the digest of every file below in `SHA256SUMS`, as `sha256sum` does; each process reads some of them.

    Raises RunError, on all processes, when it cannot.
    """
    names = world.from_main(
        lambda: sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    )

    def digest_share() -> list[str]:
        with writing(folder):
            return [f"{_digest(folder / name)}  {name}\n" for name in names[world.rank :: world.size]]

    lines = sorted(in_order(world.together(digest_share)), key=lambda line: line.partition("  ")[2])

    def write() -> None:
        with writing(folder):
            (folder / DIGESTS).write_text("".join(lines), encoding="utf-8")

    world.from_main(write)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    """Turn what the libraries raise for a damaged file into a RunError."""
    try:
        yield
    except Exception as error:  # OSError, SafetensorError, RuntimeError for other shapes, KeyError, ...
        reason = " ".join(str(error).split("\n")[:3]).strip()
        raise RunError(f"{checkpoint}: cannot be read ({reason}). Delete it to use the one before.") from None
