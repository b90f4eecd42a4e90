"""JSON inside the page: safe whatever it holds, and measured, so that a page keeps to its size."""

from __future__ import annotations

import json
from typing import Any


def json_for_script(values: Any) -> str:
    """JSON that is safe inside a script element: no `<`, `>` or `&`, so nothing in it can end the element."""
    text = json.dumps(values, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def embedded_size(values: Any) -> int:
    """Bytes that values take in the page."""
    return len(json_for_script(values).encode("utf-8", "surrogatepass"))
