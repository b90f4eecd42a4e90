"""Training: the loop, the learner, run folders and checkpoints."""

from luffy.training.loop import train
from luffy.training.run_folder import RunFolder, RunSummary

__all__ = ["RunFolder", "RunSummary", "train"]
