"""Completions that try to hang, crash or exhaust a verifier, the same for the same seed.

Each family is a function of a random generator and a size (from 1 to 1, log-uniform up to `LARGEST`); a completion is
what one of them writes, sometimes inside a box, sometimes after other text.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Iterator

LARGEST = 100_000  # characters, about
REFERENCES = ("5", "\\frac{1}{2}", "x^2+1", "(1, 2)", "\\{1, 2\\}", "[0, 1)", "50\\%", "\\text{even}", "\\sqrt{2}")
COMMANDS = [
    *("\\frac", "\\sqrt", "\\text", "\\left(", "\\right)", "\\boxed", "\\sum", "\\int", "\\binom", "\\pi", "\\cdot"),
    *("\\begin{matrix}", "\\end{matrix}", "\\infty", "\\{", "\\}", "{", "}", "^", "_", "&", "\\\\", "$", "$$", "\\("),
    *("\\)", "\\[", "\\]", "\\def", "\\mathbb", "\\operatorname", "\\lim", "\\log", "\\sin", *"+-=<>%#1x,;!|"),
]

Family = Callable[[random.Random, int], str]


def _nested(before: str, inside: str, after: str, most: int = LARGEST) -> Family:
    def family(_: random.Random, size: int) -> str:
        depth = min(max(1, size // len(before + after)), most)
        return before * depth + inside + after * depth

    return family


def _repeated(part: str, before: str = "", after: str = "") -> Family:
    return lambda _, size: before + part * max(1, size // len(part)) + after


def _drawn(alphabet: str) -> Family:
    return lambda draw, size: "".join(draw.choices(alphabet, k=size))


def _tower(draw: random.Random, size: int) -> str:
    return "^{".join(str(draw.randint(2, 99)) for _ in range(2 + size % 8)) + "}" * (1 + size % 8)


def _soup(draw: random.Random, size: int) -> str:
    return "".join(draw.choices(COMMANDS, k=max(1, size // 5)))


def _polynomial(draw: random.Random, size: int) -> str:
    return "+".join(f"{draw.randint(1, 99)}x^{{{draw.randint(1, 99)}}}" for _ in range(1 + size // 500)) + "=0"


def _matrix(draw: random.Random, size: int) -> str:
    side = 1 + math.isqrt(size // 10)
    rows = ("&".join(str(draw.randint(-9, 9)) for _ in range(side)) for _ in range(side))
    return "\\begin{pmatrix}" + "\\\\".join(rows) + "\\end{pmatrix}"


def _set_of(draw: random.Random, size: int) -> str:
    return "\\{" + ",".join(f"\\frac{{{draw.randint(1, 999)}}}{{x+{n}}}" for n in range(1 + size // 200)) + "\\}"


FAMILIES: dict[str, Family] = {
    "open braces": _repeated("{"),
    "closing braces": _repeated("}"),
    "nested braces": _nested("{", "5", "}"),
    "nested parentheses": _nested("(", "5", ")"),
    "nested left and right": _nested("\\left(", "x", "\\right)"),
    "nested fractions": _nested("\\frac{1}{", "2", "}"),
    "nested roots": _nested("\\sqrt{", "2", "}"),
    "nested powers": _nested("2^{", "2", "}"),
    "nested boxes": _nested("\\boxed{", "5", "}"),
    "nested sines": _nested("\\sin(", "x", ")"),
    "nested sets": _nested("\\{", "1", "\\}"),
    "open boxes": _repeated("\\boxed{"),
    "open fractions": _repeated("\\frac{1}{"),
    "towers of powers": _tower,
    "huge powers": lambda draw, size: f"{draw.randint(2, 99)}^{{{10 ** min(size % 40, 30)}}}",
    "huge modulus": lambda draw, size: f"7^{{{10 ** (size % 30)}}} \\bmod {draw.randint(2, 10**6)}",
    "factorials": lambda draw, size: f"{draw.randint(5, 10**6)}" + "!" * (1 + size % 5),
    "binomials": lambda draw, size: f"\\binom{{{10 ** (size % 9)}}}{{{draw.randint(1, 10**6)}}}",
    "digits": _repeated("7"),
    "decimals": _repeated("3", before="0."),
    "exponents": lambda _, size: f"1e{'9' * min(size, 5000)}",
    "commas": _repeated("111,"),
    "long sums": _repeated("1+", after="1"),
    "long products": _repeated("(x+1)", after=""),
    "expansions": lambda draw, size: f"(x+y+z)^{{{min(size, 400)}}} - {draw.randint(1, 9)}",
    "polynomials to solve": _polynomial,
    "inequalities": lambda draw, size: "<".join(f"x^{draw.randint(1, 9)}" for _ in range(2 + size // 5000)),
    "sums": lambda draw, size: f"\\sum_{{n=1}}^{{{10 ** (size % 12)}}} \\frac{{1}}{{n^{draw.randint(1, 9)}+{size}}}",
    "integrals": lambda draw, _: f"\\int_0^{{{draw.randint(1, 99)}}} \\sin(x^{draw.randint(2, 9)}) e^{{x^2}} dx",
    "limits": lambda draw, _: (
        f"\\lim_{{x \\to 0}} \\frac{{\\sin^{{{draw.randint(2, 60)}}} x}}{{x^{{{draw.randint(2, 60)}}}}}"
    ),
    "matrices": _matrix,
    "sets": _set_of,
    "joined environments": _repeated("$x$ and "),
    "dollars": _repeated("$ "),
    "answers without one": _repeated("the final answer is "),
    "many boxes": _repeated("\\boxed{1} "),
    "percent": _repeated("5\\% "),
    "definitions": _repeated("\\def\\a{\\a\\a}\\a "),
    "environments": _repeated("\\begin{pmatrix}"),
    "TeX soup": _soup,
    "printable soup": _drawn(string.printable),
    "TeX characters": _drawn("\\{}$^_()[]!,.;&%#xX019+-*/=<> "),
    "control characters": _drawn("".join(map(chr, range(32))) + "\x7f\x80\x9b"),
    "Unicode": lambda draw, size: "".join(
        chr(draw.choice((0x300, 0x660, 0x1D7D9, 0x202E, 0xFF15, 0x2460, 0x1F600)) + draw.randint(0, 9))
        for _ in range(size)
    ),
    "any Unicode": lambda draw, size: "".join(
        chr(draw.choice((draw.randint(1, 0xD7FF), draw.randint(0xE000, 0x10FFFF)))) for _ in range(size)
    ),
    "half surrogates": _repeated("\ud800"),
    "newlines": _repeated("\n\r\x0b\x0c\u2028"),
    "spaces": _repeated(" \t\u00a0\u3000"),
    "code": lambda draw, _: draw.choice(
        ("__import__('os').abort()", "exit()", "().__class__", "lambda: 0", "9**9**9**9")
    ),
    "nothing": lambda _draw, _size: "",
}


def hostile_completions(count: int, seed: int = 0) -> Iterator[tuple[str, str, str]]:
    """`count` hostile completions as (family, text of the completion, reference answer)."""
    draw = random.Random(f"hostile/{seed}")
    names = list(FAMILIES)
    for number in range(count):
        name = names[number % len(names)]
        text = FAMILIES[name](draw, round(10 ** draw.uniform(0, math.log10(LARGEST))))
        around = draw.choice(("{}", "\\boxed{{{}}}", "${}$", "so the answer is ${}$.", "\\[{}\\]", "#### {}"))
        yield name, around.replace("{{", "{").replace("}}", "}").replace("{}", text, 1), draw.choice(REFERENCES)
