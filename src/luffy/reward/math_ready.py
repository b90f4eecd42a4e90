"""Importing this module imports math-verify and builds its parser: for the process that workers are copied from."""

from luffy.reward.verifiers import grade, verify_math

grade(verify_math, "#### 1/2", "0.5")
