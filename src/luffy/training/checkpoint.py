"""Checkpoints: enough to continue a run as if it had never stopped.

    RUN/checkpoints/step-000050/model/               a Hugging Face folder, or
    RUN/checkpoints/step-000050/adapter/             the adapter's weights, where one is trained
    RUN/checkpoints/step-000050/optimizer.safetensors  AdamW's moments
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

from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from luffy.errors import RunError
from luffy.files import write_folder_whole, writing
from luffy.policy import LoadedModel
from luffy.policy.adapters import has_adapter, load_adapter, plain_copy, save_adapter
from luffy.policy.sharding import split_like
from luffy.training.learner import Learner
from luffy.training.world import ALONE, World
from luffy.training.wrapper import parameters_of

logger = logging.getLogger(__name__)

DIGESTS = "SHA256SUMS"


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

    weights: Mapping[str, Tensor]  # by name
    moments: Mapping[str, Tensor]  # AdamW's, by `index.name`; index: place of the parameter in the optimizer

    @classmethod
    def of(cls, learner: Learner) -> WholeState:
        """Gather it; where the weights are split over processes, all of them take part."""
        return cls(learner.wrapper.whole_weights(), learner.wrapper.whole_moments(learner.optimizer))


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
    folder = run / "checkpoints" / f"step-{progress.step:06d}"
    if folder in list_checkpoints(run):
        return

    def fill(folder: Path) -> None:
        if has_adapter(loaded.model):
            save_adapter(folder / "adapter", loaded.model, "")
        else:
            save_model(folder / "model", loaded, state.weights)
        save_file(dict(state.moments), folder / "optimizer.safetensors")
        if ahead is not None:
            (folder / "ahead.json").write_text(json.dumps(ahead), encoding="utf-8")
        (folder / "state.json").write_text(json.dumps(asdict(progress)), encoding="utf-8")
        write_digests(folder)

    write_folder_whole(folder, fill)
    for old in keep.leaving(list_checkpoints(run)):
        shutil.rmtree(_set_aside(old, ".part"), ignore_errors=True)  # one that is half deleted must not look whole


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
    if not {"state.json", "optimizer.safetensors"} <= listed.keys():
        return f"{DIGESTS} is not whole"
    for name, digest in listed.items():
        try:
            if _digest(checkpoint / name) != digest:
                return f"{name} is not as it was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
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
    """Write model and tokenizer as a Hugging Face folder, an adapter merged into the weights.

    weights: the model's, by name, each of them whole.
    """
    if has_adapter(loaded.model):
        plain_copy(loaded.model).save_pretrained(folder)
    else:
        loaded.model.save_pretrained(folder, state_dict=dict(weights))
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
    """Put the weights of a checkpoint into the model; the first process reads them for all.

    Raises RunError when they cannot be read.
    """
    model = loaded.model

    def read() -> dict[str, Tensor]:
        with _reading(checkpoint):
            if has_adapter(model):
                load_adapter(checkpoint / "adapter", model)
                return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
            saved = type(model).from_pretrained(
                checkpoint / "model", dtype=model.dtype, use_safetensors=True, local_files_only=True
            )
            return dict(saved.state_dict())

    weights = world.tensors_from_main(read)
    with _reading(checkpoint):
        model.load_state_dict(weights, strict=not has_adapter(model))


def load_optimizer(checkpoint: Path, learner: Learner) -> None:
    """Put AdamW's moments of a checkpoint into the learner's optimizer. Raises RunError when they cannot be read."""

    def read() -> dict[str, Tensor]:
        with _reading(checkpoint):
            return load_file(checkpoint / "optimizer.safetensors")

    moments = learner.world.tensors_from_main(read)
    for index, parameter in enumerate(parameters_of(learner.optimizer)):
        if f"{index}.step" in moments:
            learner.optimizer.state[parameter] = {
                "step": moments[f"{index}.step"].to(parameter.device),
                "exp_avg": split_like(moments[f"{index}.exp_avg"], parameter),
                "exp_avg_sq": split_like(moments[f"{index}.exp_avg_sq"], parameter),
            }


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _set_aside(checkpoint: Path, ending: str) -> Path:
    """Rename a checkpoint so that it is none any more. Returns its new path."""
    aside = checkpoint.with_name(checkpoint.name + ending)
    with writing(checkpoint):
        shutil.rmtree(aside, ignore_errors=True)
        return checkpoint.rename(aside)


def write_digests(folder: Path) -> None:
    """List the digest of every file below in `SHA256SUMS`, as `sha256sum` does."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{_digest(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / DIGESTS).write_text("".join(lines), encoding="utf-8")


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
