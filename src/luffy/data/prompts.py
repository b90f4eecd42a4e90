r"""Write a prompt as the model expects it, and turn prompts and traces into tokens.

    template    a prompt that is text                        chat messages
    chat        one user message                             as they are, both by the tokenizer's chat template
    think       the paper's system prompt, by the chat template; the generation starts inside <think>
    qwen_math   Qwen-Math's system prompt, in ChatML         the same around their contents
    simple      User: ... Answer: Let's think step by step.  the same around their contents
    none        as it is                                     their contents, separated by blank lines
    auto        `chat` where the tokenizer has a chat template, else `none`

`think`, `qwen_math` and `simple` say themselves what the system prompt is: system messages of a problem are left out.
A chat template and ChatML write the special tokens themselves, so none are added to their text; the other templates get
those that the tokenizer puts before a text. A trace is its text, without the opening tag of a thought that the prompt
has opened, without special tokens before it, then end-of-sequence exactly once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from luffy.errors import DataError, ModelError
from luffy.formats import CLOSING, OPENING, CompletionFormat
from luffy.types import Problem, Prompt, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Template = Literal["auto", "chat", "think", "qwen_math", "simple", "none"]

TEXTS_AT_ONCE = 256  # texts given to the tokenizer in one call, which may use all cores

# The system prompt of LUFFY, word for word as in the data files of its repository (ElliottYan/LUFFY, MIT licence): a
# model that was trained under it answers differently under any other wording.
THINK_SYSTEM_PROMPT = (
    "Your task is to follow a systematic, thorough reasoning process before providing the final solution. This "
    "involves analyzing, summarizing, exploring, reassessing, and refining your thought process through multiple "
    "iterations. "
    "Structure your response into two sections: Thought and Solution. In the Thought section, present your reasoning "
    f'using the format: "{OPENING}\n {{thoughts}} {CLOSING}\n". Each thought should include detailed analysis, '
    f'brainstorming, verification, and refinement of ideas. After "{CLOSING}\n," in the Solution section, provide the '
    "final, logical, and accurate answer, clearly derived from the exploration in the Thought section. If applicable, "
    "include the answer in \\boxed{} for closed-form results like multiple choices or mathematical solutions."
)
QWEN_MATH_SYSTEM_PROMPT = "Please reason step by step, and put your final answer within \\boxed{}."  # of its model card
CHATML_START = "<|im_start|>"


def choose_template(tokenizer: PreTrainedTokenizerBase, template: Template) -> Template:
    """What `auto` stands for with this tokenizer; any other template is returned as it is."""
    if template == "auto":
        return "chat" if tokenizer.chat_template else "none"
    return template


def format_in_use(
    problem: Problem, tokenizer: PreTrainedTokenizerBase, template: Template, layout: CompletionFormat
) -> CompletionFormat:
    """The layout of completions, with the thought opened where the prompts of this template and tokenizer open it.

    A chat template may do so too: those of many reasoning models do.
    """
    return layout.seen_in(render_prompt(problem, tokenizer, template))


def render_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, template: Template) -> str:
    """The prompt as text, special tokens of the chat template included.

    Raises DataError when the template cannot write this prompt, ModelError when the tokenizer lacks what it needs.
    """
    template = choose_template(tokenizer, template)
    if template == "chat":
        return _by_chat_template(problem.id, _messages(problem), tokenizer)
    if template == "think":
        return _think(problem, tokenizer)
    if template == "qwen_math":
        return _qwen_math(_question(problem), tokenizer)
    return _simple(problem) if template == "simple" else _joined(problem)


def messages_for_server(problem: Problem, template: Template) -> Prompt:
    """The prompt for a server that applies the model's chat template itself: messages, or text to be continued.

    `think` and `qwen_math` send their system prompts; that the generation starts inside the thought, only the server
    can see to. `simple` and `none` send text.
    """
    if template in ("simple", "none"):
        return _simple(problem) if template == "simple" else _joined(problem)
    if template in ("think", "qwen_math"):
        system = THINK_SYSTEM_PROMPT if template == "think" else QWEN_MATH_SYSTEM_PROMPT
        return ({"role": "system", "content": system}, *_without_system(problem))
    return tuple(_messages(problem))


def encode_prompt(problem: Problem, tokenizer: PreTrainedTokenizerBase, template: Template) -> list[int]:
    """The prompt as token ids [prompt tokens], ready for generation: never with end-of-sequence at its end."""
    return encode_prompts([problem], tokenizer, template)[0]


def encode_prompts(
    problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase, template: Template
) -> list[list[int]]:
    """The prompts as token ids, [problems][prompt tokens]. Raises DataError for a prompt without any token."""
    special = not _writes_special_tokens(tokenizer, template)
    texts = [render_prompt(problem, tokenizer, template) for problem in problems]
    encoded = _tokenize(texts, tokenizer, special_tokens=special)
    if special:  # some tokenizers are set to close every text with end-of-sequence, after which nothing is generated
        for ids in encoded:
            _strip_end(ids, tokenizer.eos_token_id)
    for problem, ids in zip(problems, encoded, strict=True):
        if not ids:
            raise DataError(f"problem {problem.id!r}: the tokenizer turns its prompt into no tokens at all.")
    return encoded


def encode_trace(trace: Trace, tokenizer: PreTrainedTokenizerBase, layout: CompletionFormat | None = None) -> list[int]:
    """The trace as token ids [tokens], end-of-sequence once at its end. Raises ModelError without such a token."""
    return encode_traces([trace], tokenizer, layout)[0]


def encode_traces(
    traces: Sequence[Trace], tokenizer: PreTrainedTokenizerBase, layout: CompletionFormat | None = None
) -> list[list[int]]:
    """The traces as token ids, [traces][tokens]. layout: as `format_in_use` gives it; None: texts as they are."""
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError(
            "the tokenizer has no end-of-sequence token, so a trace cannot end. Set eos_token in tokenizer_config.json."
        )
    texts = [layout.written_after_prompt(trace.text) if layout else trace.text for trace in traces]
    encoded = _tokenize(texts, tokenizer, special_tokens=False)
    for ids in encoded:
        _strip_end(ids, end)
        ids.append(end)
    return encoded


def count_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens a piece of a completion takes, without special tokens around it."""
    return len(_tokenize([text], tokenizer, special_tokens=False)[0])


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


def _writes_special_tokens(tokenizer: PreTrainedTokenizerBase, template: Template) -> bool:
    template = choose_template(tokenizer, template)
    return template in ("chat", "qwen_math") or (template == "think" and bool(tokenizer.chat_template))


def _think(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> str:
    """The paper's prompt. A tokenizer without chat template gets its layout: `User: ...`, `Assistant: <think>`."""
    if not tokenizer.chat_template:
        return f"{THINK_SYSTEM_PROMPT}\n\nUser: {_question(problem)}\nAssistant: {OPENING}\n"
    system = {"role": "system", "content": THINK_SYSTEM_PROMPT}
    prompt = _by_chat_template(problem.id, [system, *_without_system(problem)], tokenizer)
    return prompt if prompt.rstrip().endswith(OPENING) else f"{prompt}{OPENING}\n"


def _simple(problem: Problem) -> str:
    """LUFFY's prompt for LLaMA (arXiv 2504.14945, appendix C): no system prompt, no <think>."""
    return f"User: {_question(problem)} Answer: Let's think step by step."


def _qwen_math(question: str, tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.convert_tokens_to_ids(CHATML_START) in (None, tokenizer.unk_token_id):
        raise ModelError(
            f"the tokenizer has no token {CHATML_START}: its model does not know ChatML, which data.template=qwen_math "
            "writes. Set data.template to chat, simple or auto."
        )
    turns = (("system", QWEN_MATH_SYSTEM_PROMPT), ("user", question))
    written = "".join(f"{CHATML_START}{role}\n{content}<|im_end|>\n" for role, content in turns)
    return f"{written}{CHATML_START}assistant\n"


def _by_chat_template(problem_id: str, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    if not tokenizer.chat_template:
        raise ModelError("the tokenizer has no chat template. Set data.template to none, simple or auto.")
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template is a program of the model's author and may raise anything
        raise DataError(
            f"problem {problem_id!r}: the chat template refuses the prompt ({type(error).__name__}: {error})."
        ) from error


def _messages(problem: Problem) -> list[dict[str, str]]:
    if isinstance(problem.prompt, str):
        return [{"role": "user", "content": problem.prompt}]
    return [dict(message) for message in problem.prompt]


def _without_system(problem: Problem) -> list[dict[str, str]]:
    """The messages that are not system messages; raises DataError when nothing is left."""
    messages = [message for message in _messages(problem) if message["role"] not in ("system", "developer")]
    if not any(message["content"].strip() for message in messages):
        raise DataError(f"problem {problem.id!r}: its prompt has no user message, only a system message.")
    return messages


def _question(problem: Problem) -> str:
    """The user's messages as one text."""
    return _join(problem, _without_system(problem))


def _joined(problem: Problem) -> str:
    """All messages as one text."""
    return _join(problem, _messages(problem))


def _join(problem: Problem, messages: Sequence[Mapping[str, str]]) -> str:
    """The contents of messages as one text; a conversation with answers in it would lose who said what."""
    if isinstance(problem.prompt, str):
        return problem.prompt
    if any(message["role"] not in ("system", "developer", "user") for message in messages):
        raise DataError(
            f"problem {problem.id!r}: its prompt is a conversation, which only a chat template can write. "
            "Set data.template=chat and use a model that has one."
        )
    return "\n\n".join(message["content"] for message in messages if message["content"])
