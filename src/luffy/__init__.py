"""LUFFY: train language models to reason, by reinforcement learning from verifiable rewards under off-policy guidance.

    from luffy import Problem, Trace, load_config, train

What needs torch is imported when it is first used, so that `import luffy` and the command line start quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from luffy.config import Config, load_config
from luffy.errors import ConfigError, DataError, LuffyError, ModelError, RunError
from luffy.types import Completion, Group, Problem, Rollout, Trace

if TYPE_CHECKING:
    from luffy.evaluation import EvalResult, evaluate
    from luffy.reward import Verdict, verify
    from luffy.training import RunSummary, train

__version__ = "0.1.0"

_LATE = {
    "EvalResult": "luffy.evaluation",
    "RunSummary": "luffy.training",
    "Verdict": "luffy.reward",
    "evaluate": "luffy.evaluation",
    "train": "luffy.training",
    "verify": "luffy.reward",
}

__all__ = [
    "Completion",
    "Config",
    "ConfigError",
    "DataError",
    "EvalResult",
    "Group",
    "LuffyError",
    "ModelError",
    "Problem",
    "Rollout",
    "RunError",
    "RunSummary",
    "Trace",
    "Verdict",
    "evaluate",
    "load_config",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(_LATE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
