"""Write a prompt as the model expects it, and turn prompts and traces into tokens.

    template   a prompt that is text             chat messages
    chat       one user message                  as they are, both by the tokenizer's chat template
    none       as it is                          their contents, separated by blank lines
    simple     User: ... Answer: Let's think step by step.         the same, around their contents
    auto       `chat` where the tokenizer has a chat template, else `none`

A chat template writes the special tokens itself, so none are added to its text; the other templates get those that the
tokenizer puts before a text. A trace is its text, without special tokens before it, then end-of-sequence exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from luffy.errors import DataError, ModelError
from luffy.types import Problem, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["auto", "chat", "none", "simple"]

TEXTS_AT_ONCE = 256  # texts given to the tokenizer in one call, which may use all cores


def choose_template(tokenizer: PreTrainedTokenizerBase, template: Template) -> Template:
    """What `auto` stands for with this tokenizer; any other template is returned as it is."""
    if template == "auto":
        return "chat" if tokenizer.chat_template else "none"
    return template


def render_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, template: Template) -> str:
    """The prompt as text, special tokens of the chat template included.

    Raises DataError when the template cannot write this prompt, ModelError when the tokenizer lacks a chat template.
    """
    template = choose_template(tokenizer, template)
    if template == "chat":
        return _by_chat_template(problem, tokenizer)
    text = problem.prompt if isinstance(problem.prompt, str) else _joined(problem)
    # LUFFY's prompt for LLaMA (arXiv 2504.14945, appendix C): no system prompt, no <think>.
    return f"User: {text} Answer: Let's think step by step." if template == "simple" else text


def encode_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, template: Template) -> list[int]:
    """The prompt as token ids [prompt tokens], ready for generation: never with end-of-sequence at its end."""
    return encode_prompts([problem], tokenizer, template)[0]


def encode_prompts(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, template: Template
) -> list[list[int]]:
    """The prompts as token ids, [problems][prompt tokens]. Raises DataError for a prompt without any token."""
    special = choose_template(tokenizer, template) != "chat"
    texts = [render_prompt(problem, tokenizer, template) for problem in problems]
    encoded = _tokenize(texts, tokenizer, special_tokens=special)
    if special:  # some tokenizers are set to close every text with end-of-sequence, after which nothing is generated
        for ids in encoded:
            _strip_end(ids, tokenizer.eos_token_id)
    for problem, ids in zip(problems, encoded, strict=True):
        if not ids:
            raise DataError(f"problem {problem.id!r}: the tokenizer turns its prompt into no tokens at all.")
    return encoded


def encode_trace(trace: Trace, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The trace as token ids [tokens], end-of-sequence once at its end. Raises ModelError without such a token."""
    return encode_traces([trace], tokenizer)[0]


def encode_traces(traces: Sequence[Trace], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The traces as token ids, [traces][tokens]."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so a trace cannot end. Set eos_token in tokenizer_config.json."
        )
    encoded = _tokenize([trace.text for trace in traces], tokenizer, special_tokens=False)
    for ids in encoded:
        _strip_end(ids, end)
        ids.append(end)
    return encoded


def _tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, special_tokens: bool) -> list[list[int]]:
    encoded: list[list[int]] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        batch = tokenizer(
            list(texts[start : start + TEXTS_AT_ONCE]),
            add_special_tokens=special_tokens,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,  # it warns of texts beyond the model's length, which the limits of the run deal with
        )
        encoded.extend(list(ids) for ids in batch["input_ids"])
    return encoded


def _strip_end(ids: list[int], end: int | None) -> None:
    while end is not None and ids and ids[-1] == end:
        ids.pop()


def _by_chat_template(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template. Set data.template to none, simple or auto.")
    messages = _messages(problem)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise DataError(
            f"problem {problem.id!r}: the chat template refuses the prompt ({type(error).__name__}: {error})."
        ) from error


def _messages(problem: Problem) -> list[dict[str, str]]:
    if isinstance(problem.prompt, str):
        return [{"role": "user", "content": problem.prompt}]
    return [dict(message) for message in problem.prompt]


def _joined(problem: Problem) -> str:
    """The contents of chat messages as one text; a conversation with answers in it would lose who said what."""
    messages: Sequence[Mapping[str, str]] = _messages(problem)
    if any(message["role"] not in ("system", "developer", "user") for message in messages):
        raise DataError(
            f"problem {problem.id!r}: its prompt is a conversation, which only a chat template can write. "
            "Set data.template=chat and use a model that has one."
        )
    return "\n\n".join(message["content"] for message in messages if message["content"])
