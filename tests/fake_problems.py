"""Problems and texts without a model, for tests of what happens around the engine."""

from luffy.data import EncodedProblem, EncodedTrace
from luffy.types import Problem


class Known:
    """Verdicts that are there at once."""

    def __init__(self, verdicts):
        self.verdicts = verdicts

    def result(self):
        return self.verdicts


class FakeTokenizer:
    """Token 9 ends a text and is special; the others are themselves."""

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(str(one) for one in ids if not (skip_special_tokens and one == 9))


def encoded(number, traces=0, reward=1.0):
    problem = Problem(f"p{number}", f"prompt {number}", f"{number} 0")
    made = tuple(EncodedTrace((number, 50 + place, 9), None, f"trace {place}", reward) for place in range(traces))
    return EncodedProblem(problem, (number,), made)
