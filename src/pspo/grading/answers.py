r"""Where a text puts its answer: after the last `####`, or in the last `\boxed{}`. Imports the standard library only.

Always the last one: the first would accept "#### 42, wait, #### 41".
"""

import re

from pspo.grading.numbers import after_answer

_BOX = re.compile(r"\\f?boxed(?![A-Za-z])\s*")
_BARE_BOX = re.compile(r"[^\s$\\{}]+")


def last_hash_line(text: str) -> str | None:
    """The first non-blank line after the last `####` ("" if nothing follows), or None without any `####`."""
    start = text.rfind("####")
    if start < 0:
        return None
    return text[start + 4 :].lstrip().split("\n", 1)[0].strip()


def last_box(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, braces matched; also the brace-less `\boxed 2`. None without any box.

    "" if the last box is empty or was never closed, as in a truncated completion: an earlier box is then not the
    answer.
    `\{` and `\}` are set braces, not LaTeX groups, and do not count.
    """
    start = -1
    for opening in _BOX.finditer(text):
        start = opening.end()
    if start < 0:
        return None
    if text[start : start + 1] != "{":
        bare = _BARE_BOX.match(text, start)
        return bare.group().rstrip(".,;") if bare else ""
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[start + 1 : start + brace.start()].strip()
    return ""


def lenient_expression(text: str) -> str | None:
    """What stands after the last "the answer is", without its full stop and dollar signs; None without one."""
    found = after_answer(text)
    return found[0].strip(" .*$") if found else None
