"""What a run shows of itself: which groups are kept token by token, which traces are watched."""

from fake_problems import FakeTokenizer, encoded
from luffy import Problem
from luffy.data import EncodedTrace
from luffy.training.look import LONGEST_WATCHED, Scored, rollout_records, watched_traces
from luffy.types import Group, Rollout


def rollout(off_policy, behavior=(0.0, 0.0)):
    return Rollout((1,), (2, 9), behavior, off_policy, True, 1.0, "2 9")


def test_records_hold_tokens_of_the_scored_groups_only():
    groups = [
        Group(Problem(f"p{number}", "prompt", "2"), [rollout(False, (-0.5, -1.5)), rollout(True)], [-0.5, 0.5])
        for number in range(2)
    ]
    scored = [[Scored([-9.0, -9.0], [0.7, 0.1]), Scored([-3.0, -0.25], [0.6, 0.2])]]
    first, second = rollout_records(groups, FakeTokenizer(), scored)
    own, trace = first["rollouts"]
    assert own["tokens"] == trace["tokens"] == ["2", "9"]
    assert own["logprobs"] == [-0.5, -1.5]  # the engine's, whatever the policy thinks of it now
    assert own["entropy"] == [0.7, 0.1]
    assert trace["logprobs"] == [-3.0, -0.25]  # the policy's
    assert "teacher_logprobs" not in trace  # none were recorded: pi_phi = 1
    assert [one["advantage"] for one in second["rollouts"]] == [-0.5, 0.5]
    assert "tokens" not in second["rollouts"][0]


def test_a_teachers_log_probs_are_kept_beside_the_policys():
    group = Group(Problem("p", "prompt", "2"), [rollout(True, (-0.1, -0.2))], [0.5])
    ((trace,),) = (record["rollouts"] for record in rollout_records([group], FakeTokenizer(), [[Scored([-3], [0.6])]]))
    assert trace["teacher_logprobs"] == [-0.1, -0.2]
    assert trace["logprobs"] == [-3]


def test_one_trace_each_of_the_first_problems_is_watched():
    pairs = [(problem, trace) for number in range(8) if (problem := encoded(number, 2)) for trace in problem.traces]
    watched = watched_traces(pairs)
    assert [(problem.problem.id, trace.text) for problem, trace in watched] == [
        (f"p{number}", "trace 0") for number in range(4)
    ]
    long = EncodedTrace((1,) * (LONGEST_WATCHED + 1), None, "long", 1.0)
    assert watched_traces([(encoded(0), long)]) == []
