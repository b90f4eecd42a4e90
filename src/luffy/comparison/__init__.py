"""Several methods under equal conditions: their runs side by side, and what follows from them."""

from luffy.comparison.runner import plan_comparison, run_comparison
from luffy.comparison.verdicts import build_comparison, write_comparison

__all__ = ["build_comparison", "plan_comparison", "run_comparison", "write_comparison"]
