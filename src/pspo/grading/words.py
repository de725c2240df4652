"""Which words may stand behind a number and leave it the number it is: "apples", "dollars per hour", not "or six".

Imports the standard library only.
"""

import re
import unicodedata

UNIT_LETTERS = frozenset("mgshlLVWNJ")  # metre, gram, second, ...; any other single letter is a variable
NUMBER_WORD = (
    r"(?:(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)(?:-(?:one|two|three|four|five|six|seven|eight|nine))?"
    r"|zero|one|two|three|ten|eleven|twelve|thirteen|fifteen|eighteen|(?:four|six|seven|eight|nine)(?:teen)?|five"
    r"|hundreds?|thousands?|[mbtr]+illions?|dozens?)"
)
_NUMBER_WORD = re.compile(NUMBER_WORD)


def word_set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Parts, powers, operators, doubt.
_CHANGING = word_set(
    "half halves third thirds fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths ninth ninths"
    " tenth tenths hundredth hundredths thousandth thousandths squared cubed factorial pi plus minus divided"
    " multiplied modulo mod or nor xor not never no wrong incorrect false wait actually rather instead maybe perhaps"
    " possibly probably except unless versus vs"
)
_TOKEN = re.compile(r"[^\W\d_]+|\S")
_AND_A = re.compile(r"\band\s+an?\b", re.IGNORECASE)  # "and a half", "and a pear"


def changes_nothing(text: str, punctuation: str, also: frozenset[str] = frozenset()) -> bool:
    """Does `text` hold only words that leave a number before it alone, and the characters of `punctuation`?

    `also` are further words that are refused, in lower case.
    """
    tokens = _TOKEN.findall(text)
    words = [token for token in tokens if token[0].isalpha()]
    return (
        all(token[0].isalpha() or token in punctuation for token in tokens)
        and all(_is_plain(word, alone=len(words) == 1) and word.casefold() not in also for word in words)
        and not _AND_A.search(text)
    )


def _is_plain(word: str, alone: bool) -> bool:
    if len(word) == 1:
        ideograph = unicodedata.category(word) == "Lo"
        return word in UNIT_LETTERS or ideograph or (word in "aI" and not alone)
    lower = word.casefold()
    return lower not in _CHANGING and not _NUMBER_WORD.fullmatch(lower)
