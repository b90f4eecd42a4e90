"""Verifiers: a completion and a reference answer in, a verdict out; and the processes they run in.

    verify("number", "18 eggs, so #### 18", "18")            one verdict, in this process
    VerifierPool("math", workers=2, deadline=5.0)            many, in processes that may hang or crash

`verifiers` holds the kinds, `answers` finds the final answer of a completion and reads numbers, `pool` runs verifiers
in worker processes (`worker`). Nothing here imports torch or transformers: workers must start quickly.
"""

from luffy.reward.pool import PendingVerdicts, VerifierPool
from luffy.reward.verifiers import VERIFIERS, Verdict, Verifier, resolve_verifier, verify

__all__ = ["VERIFIERS", "PendingVerdicts", "Verdict", "Verifier", "VerifierPool", "resolve_verifier", "verify"]
