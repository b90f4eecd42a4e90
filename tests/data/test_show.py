from luffy.data import show_problem
from luffy.types import Problem, Trace


def test_prompt_and_traces_as_the_model_gets_them(chat_tokenizer):
    problem = Problem("a", "2+2\n=?", "4", "sums", (Trace("2+2=4\n#4", "teacher", (-1.0,)),))
    assert show_problem(problem, chat_tokenizer).plain.splitlines() == [
        "problem a, from sums, answer 4",
        "prompt, 20 tokens, template chat, not trained on:".replace("20", str(len("2+2\n=?") + 5)),
        "| <s><|user|>2+2",
        "| =?<|end|>A:",
        "trace 1 by teacher, 9 tokens, with log-probs, trained on:",
        "> 2+2=4",
        "> #4</s>",
    ]


def test_special_and_trained_tokens_have_their_own_style(chat_tokenizer):
    shown = show_problem(Problem("a", "é", "4", "", (Trace("é#4"),)), chat_tokenizer, "none")
    styled = {shown.plain[span.start : span.end]: span.style for span in shown.spans}
    assert styled["<s>"] == styled["</s>"] == "bold magenta"
    assert styled["é#4"] == "green"


def test_data_cannot_steer_the_terminal(byte_tokenizer):
    shown = show_problem(Problem("\x1b[31m", "\x1b]0;x\x07\r", "\x9b", "", ()), byte_tokenizer)
    assert "\\x1b[31m" in shown.plain
    assert not any(character in shown.plain for character in "\x1b\x07\r\x9b")
    assert shown.plain.endswith("no traces\n")
