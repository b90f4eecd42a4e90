import pytest

from luffy.data import encode_prompt, encode_trace, render_prompt
from luffy.errors import DataError, ModelError
from luffy.types import Problem, Trace

TEXT = Problem("t", "2+2", "4")
CHAT = Problem("c", ({"role": "user", "content": "Hi."}, {"role": "user", "content": "2+2"}), "4")
SYSTEM = Problem("s", ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2"}), "4")
TURNS = Problem("u", (*CHAT.prompt, {"role": "assistant", "content": "4"}, {"role": "user", "content": "sure?"}), "4")


@pytest.mark.parametrize(
    ("problem", "template", "expected"),
    [
        (TEXT, "auto", "<s><|user|>2+2<|end|>A:"),
        (TEXT, "chat", "<s><|user|>2+2<|end|>A:"),
        (TEXT, "none", "2+2"),
        (TEXT, "simple", "User: 2+2 Answer: Let's think step by step."),
        (CHAT, "auto", "<s><|user|>Hi.<|end|><|user|>2+2<|end|>A:"),
        (CHAT, "none", "Hi.\n\n2+2"),
        (CHAT, "simple", "User: Hi.\n\n2+2 Answer: Let's think step by step."),
        (SYSTEM, "none", "Be brief.\n\n2+2"),
    ],
)
def test_templates(chat_tokenizer, problem, template, expected):
    assert render_prompt(problem, chat_tokenizer, template) == expected


def test_auto_takes_the_text_as_it_is_without_a_chat_template(plain_tokenizer):
    problem = Problem("a", "Q17+5:", "22")
    assert render_prompt(problem, plain_tokenizer, "auto") == "Q17+5:"
    assert plain_tokenizer.decode(encode_prompt(problem, plain_tokenizer, "auto")) == "Q17+5:"


def test_chat_template_is_not_given_special_tokens_again(chat_tokenizer):
    ids = encode_prompt(TEXT, chat_tokenizer, "chat")
    assert ids.count(chat_tokenizer.bos_token_id) == 1
    assert chat_tokenizer.decode(ids) == "<s><|user|>2+2<|end|>A:"


def test_other_templates_get_the_special_tokens_of_the_tokenizer(byte_tokenizer):
    assert byte_tokenizer.decode(encode_prompt(TEXT, byte_tokenizer, "none")) == "<s>2+2"


def test_prompt_never_ends_with_end_of_sequence(build_byte_tokenizer):
    closing = build_byte_tokenizer(closes_texts=True)
    assert closing("2+2")["input_ids"][-1] == closing.eos_token_id
    assert closing.decode(encode_prompt(TEXT, closing, "none")) == "<s>2+2"


def test_chat_without_a_chat_template_is_refused(byte_tokenizer):
    with pytest.raises(ModelError, match=r"no chat template. Set data.template"):
        render_prompt(TEXT, byte_tokenizer, "chat")


def test_prompt_that_the_chat_template_refuses_is_named(chat_tokenizer):
    with pytest.raises(DataError, match=r"problem 's': the chat template refuses the prompt .*no system messages"):
        render_prompt(SYSTEM, chat_tokenizer, "chat")


def test_conversation_needs_a_chat_template(byte_tokenizer):
    with pytest.raises(DataError, match="problem 'u': its prompt is a conversation"):
        render_prompt(TURNS, byte_tokenizer, "auto")


@pytest.mark.parametrize("text", ["#22", "#22</s>", "#22</s></s>"])
def test_trace_ends_with_end_of_sequence_once_and_starts_with_no_special_token(byte_tokenizer, text):
    ids = encode_trace(Trace(text), byte_tokenizer)
    assert byte_tokenizer.decode(ids) == "#22</s>"
    assert ids.count(byte_tokenizer.eos_token_id) == 1


def test_trace_needs_an_end_of_sequence_token(build_byte_tokenizer):
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        encode_trace(Trace("#22"), build_byte_tokenizer(eos_token=None))
