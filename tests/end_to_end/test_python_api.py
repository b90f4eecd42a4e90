"""The example of the README: own problems, own reward."""

from pathlib import Path

from luffy import Problem, Trace, load_config, train


def ends_with_answer(completion: str, answer: str) -> bool:
    """A reward of one's own: a plain function."""
    return completion.strip().endswith(answer)


def test_own_problems_and_own_reward(tmp_path):
    problems = [
        Problem("a", "Q17+5*7:", "54", traces=(Trace("17+5=22,22*7=54#54"),)),
        Problem("b", "Q20-3+4:", "21", traces=(Trace("20-3=17,17+4=21#21"),)),
    ]
    config = load_config(overrides=["steps=2", "problems_per_step=2", "rollout.max_tokens=40", f"output={tmp_path}"])
    summary = train(config, problems=problems, reward=ends_with_answer)
    assert summary.status == "finished"
    assert (Path(summary.output) / "model" / "config.json").exists()
