"""Show a problem as the model will see it: `luffy data show FILE`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luffy.data.prompts import Template, choose_template, encode_prompt, encode_trace, format_in_use
from luffy.formats import CompletionFormat
from luffy.redaction import printable
from luffy.types import Problem

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

TRAINED_STYLE, SPECIAL_STYLE, TITLE_STYLE, FLAW_STYLE = "green", "bold magenta", "bold", "bold red"


def show_problem(
    problem: Problem,
    tokenizer: PreTrainedTokenizerBase,
    template: Template = "auto",
    layout: CompletionFormat | None = None,
) -> Text:
    """The prompt and the traces as the model gets them, special tokens visible, what is trained on marked.

    The text is decoded from the very token ids of a run. Its `.plain` says the same without colours: `|` starts the
    lines of tokens that are given, `>` those of tokens that are trained on. `!`: what a trace lacks. layout: of
    completions, by the configuration.
    """
    from rich.text import Text

    prompt_ids = encode_prompt(problem, tokenizer, template)
    shown = Text()
    source = f", from {printable(problem.source)}" if problem.source else ""
    shown.append(f"problem {printable(problem.id)}{source}, answer {printable(problem.answer)}\n", TITLE_STYLE)
    used = choose_template(tokenizer, template)
    shown.append(f"prompt, {len(prompt_ids)} tokens, template {used}, not trained on:\n", TITLE_STYLE)
    _append_tokens(shown, prompt_ids, tokenizer, "| ", "")
    layout = format_in_use(problem, tokenizer, template, layout or CompletionFormat())
    if layout.prompt_end:
        shown.append(f"the generation starts inside {layout.opening}; {layout.closing} is expected\n", TITLE_STYLE)
    for number, trace in enumerate(problem.traces, start=1):
        ids = encode_trace(trace, tokenizer, layout)
        by = f" by {printable(trace.model)}" if trace.model else ""
        logprobs = ", with log-probs" if trace.logprobs is not None else ""
        shown.append(f"trace {number}{by}, {len(ids)} tokens{logprobs}, trained on:\n", TITLE_STYLE)
        _append_tokens(shown, ids, tokenizer, "> ", TRAINED_STYLE)
        flaw = layout.flaw(layout.written_after_prompt(trace.text))
        if flaw is not None:
            shown.append(f"! trace {number} {flaw}\n", FLAW_STYLE)
    if not problem.traces:
        shown.append("no traces\n", TITLE_STYLE)
    return shown


def _append_tokens(shown: Text, ids: list[int], tokenizer: PreTrainedTokenizerBase, margin: str, style: str) -> None:
    """Append the decoded tokens, each line after the margin, special tokens in their own style."""
    shown.append(margin, style)
    for run, special in _runs(ids, set(tokenizer.all_special_ids)):
        text = tokenizer.decode(run, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        text = printable(text, keep="\n").replace("\n", f"\n{margin}")
        shown.append(text, SPECIAL_STYLE if special else style)
    shown.append("\n")


def _runs(ids: list[int], special_ids: set[int]) -> list[tuple[list[int], bool]]:
    """The ids in pieces that are all special or all not: decoding single tokens would break characters."""
    runs: list[tuple[list[int], bool]] = []
    for token_id in ids:
        special = token_id in special_ids
        if runs and runs[-1][1] == special:
            runs[-1][0].append(token_id)
        else:
            runs.append(([token_id], special))
    return runs
