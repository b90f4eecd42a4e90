"""LUFFY inside trainers that others wrote. Each module needs the library it is for, and nothing else here needs it."""

from luffy.algorithm.methods import METHODS


def policy_loss_methods() -> list[str]:
    """The methods that are a policy loss and nothing else: no phase of SFT before, no supervised term beside it."""
    return [name for name, one in METHODS.items() if one.phases == ("rl",) and one.traces != "supervised"]
