r"""How a completion is laid out: one typed object that the prompt, the traces and the verifier share.

    prompt     ... Assistant: <think>\n          `prompt_end` is what the prompt ends with, if it opens the thought
    completion 17 + 5 is 22.\n</think>\n The answer is \boxed{22}
               `-- thought --' `closing'     `answer_marker'

Whether the generation starts inside the thought is read off a real prompt (`seen_in`), never assumed: it follows from
it whether a trace's own opening tag is left out and whether a closing tag is expected.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

OPENING, CLOSING = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class CompletionFormat:
    """Thought, end marker and answer of a completion."""

    opening: str = OPENING  # the tag that a thought begins with
    closing: str = CLOSING  # the end marker of a thought
    prompt_end: str = ""  # the prompt from its opening tag on, white space included; empty: it opens no thought
    gated: bool = False  # the verifier demands the closing tag and grades what follows it (reward.format)
    answer_marker: str = ""  # what the prompt asks the final answer to stand in, such as \boxed; empty: nothing

    @property
    def needs_closing(self) -> bool:
        """Whether a completion without the closing tag never comes to its answer."""
        return bool(self.prompt_end) or self.gated

    def seen_in(self, prompt: str) -> CompletionFormat:
        """This format, with the thought opened if `prompt` ends inside one."""
        opened = prompt.rstrip().endswith(self.opening)
        return replace(self, prompt_end=prompt[prompt.rindex(self.opening) :] if opened else "")

    def written_after_prompt(self, text: str) -> str:
        """A trace's text without the opening tag at its start, where the prompt has already written that tag."""
        if not self.prompt_end or not text.lstrip().startswith(self.opening):
            return text
        rest = text.lstrip().removeprefix(self.opening)
        return rest.removeprefix(self.prompt_end.removeprefix(self.opening))

    def answer_part(self, text: str) -> str | None:
        """What a gated verifier grades: the text between the first closing tag and a possible second one; else None.

        Source: the original implementation of LUFFY (reward version 3), which its paper does not mention.
        """
        parts = text.split(self.closing, maxsplit=2)
        return parts[1] if len(parts) > 1 else None

    def flaw(self, text: str) -> str | None:
        """What a trace or completion lacks, as the end of a sentence, or None."""
        if self.needs_closing and self.closing not in text:
            return f"has no {self.closing!r}, which {self._why_closing()}"
        if self.answer_marker and self.answer_marker not in text.rpartition(self.closing)[2]:
            return f"has no {self.answer_marker} around its final answer, which the prompt asks for"
        return None

    def _why_closing(self) -> str:
        return "reward.format=closed_thought demands" if self.gated else "ends the thought that the prompt has opened"
