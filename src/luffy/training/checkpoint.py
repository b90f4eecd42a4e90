"""Checkpoints: enough to continue a run as if it had never stopped.

    RUN/checkpoints/step-000050/model/               a Hugging Face folder
    RUN/checkpoints/step-000050/optimizer.safetensors  AdamW's moments
    RUN/checkpoints/step-000050/ahead.json             the next step's batch, where it was collected ahead
    RUN/checkpoints/step-000050/state.json             step, counters; written last

Random numbers need no state: what is drawn follows from the seed, the step and the place in the row of problems.
Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luffy.errors import RunError
from luffy.files import write_folder_whole
from luffy.policy import LoadedModel
from luffy.training.learner import Learner


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


def save_checkpoint(
    run: Path,
    loaded: LoadedModel,
    learner: Learner,
    progress: Progress,
    keep: int,
    ahead: Mapping[str, Any] | None = None,
) -> None:
    """Write `checkpoints/step-N` unless it is there already, then remove all but the newest `keep`.

    ahead: record of the next step's batch, if it is there already.
    Raises RunError when it cannot be written; earlier checkpoints are then untouched.
    """
    folder = run / "checkpoints" / f"step-{progress.step:06d}"
    if folder in list_checkpoints(run):
        return

    def fill(folder: Path) -> None:
        save_model(folder / "model", loaded)
        save_file(_moments(learner.optimizer), folder / "optimizer.safetensors")
        if ahead is not None:
            (folder / "ahead.json").write_text(json.dumps(ahead))
        (folder / "state.json").write_text(json.dumps(asdict(progress)))

    write_folder_whole(folder, fill)
    for old in list_checkpoints(run)[:-keep]:
        going = old.rename(old.with_name(old.name + ".part"))  # one that is half deleted must not look whole
        shutil.rmtree(going, ignore_errors=True)


def describe_last(run: Path) -> str:
    """A sentence that names the newest whole checkpoint."""
    newest = find_checkpoint(run)
    return f"The last good checkpoint is {newest}." if newest else "There is no checkpoint yet."


def save_model(folder: Path, loaded: LoadedModel) -> None:
    """Write model and tokenizer as a Hugging Face folder."""
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    whole = [path for path in run.glob("checkpoints/step-*") if (path / "state.json").is_file() and not path.suffix]
    return sorted(whole, key=lambda path: int(path.name.removeprefix("step-")))


def find_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint."""
    found = list_checkpoints(run)
    return found[-1] if found else None


def read_progress(checkpoint: Path) -> Progress:
    """The counters of a checkpoint. Raises RunError when they cannot be read."""
    try:
        return Progress(**json.loads((checkpoint / "state.json").read_text()))
    except (ValueError, TypeError, OSError) as error:
        raise RunError(f"{checkpoint}: cannot be read ({error}). Delete it to use the one before.") from None


def read_ahead(checkpoint: Path) -> dict[str, Any] | None:
    """The record of the next step's batch, if the checkpoint has one. Raises RunError when it cannot be read."""
    path = checkpoint / "ahead.json"
    if not path.exists():
        return None
    with _reading(checkpoint):
        return dict(json.loads(path.read_text()))


def load_weights(checkpoint: Path, loaded: LoadedModel) -> None:
    """Put the weights of a checkpoint into the model. Raises RunError when they cannot be read."""
    with _reading(checkpoint):
        saved = type(loaded.model).from_pretrained(
            checkpoint / "model", dtype=loaded.model.dtype, use_safetensors=True, local_files_only=True
        )
        loaded.model.load_state_dict(saved.state_dict())


def load_optimizer(checkpoint: Path, learner: Learner) -> None:
    """Put AdamW's moments of a checkpoint into the learner's optimizer. Raises RunError when they cannot be read."""
    with _reading(checkpoint):
        moments = load_file(checkpoint / "optimizer.safetensors")
    for index, parameter in enumerate(_parameters(learner.optimizer)):
        if f"{index}.step" in moments:
            learner.optimizer.state[parameter] = {
                name: moments[f"{index}.{name}"].to(parameter.device) for name in ("step", "exp_avg", "exp_avg_sq")
            }


@contextmanager
def _reading(checkpoint: Path) -> Iterator[None]:
    """Turn what the libraries raise for a damaged file into a RunError."""
    try:
        yield
    except Exception as error:  # OSError, SafetensorError, RuntimeError for other shapes, KeyError, ...
        reason = str(error).strip().split("\n")[0]
        raise RunError(f"{checkpoint}: cannot be read ({reason}). Delete it to use the one before.") from None


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, parameter in enumerate(_parameters(optimizer))
        for name, value in optimizer.state.get(parameter, {}).items()
    }


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
