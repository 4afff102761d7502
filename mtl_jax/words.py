"""Words of messages: counted nouns, and the known word that is nearest to an unknown one."""

import difflib
from collections.abc import Iterable
from typing import Any


def counted(count: int, noun: str, form: str = "") -> str:
    """'1 image', '2 images', '3 classes', '4 queries'; `form` is the number's format, such as ','."""
    return f"{count:{form}} {noun if count == 1 else plural(noun)}"


def plural(noun: str) -> str:
    """The regular plural of a noun."""
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


def nearest(word: str, known: Iterable[Any], sign: str = "") -> str:
    """' (did you mean X?)', or nothing where no known word is near."""
    near = difflib.get_close_matches(word, [str(one) for one in known], 1)
    return f" (did you mean {sign}{near[0]}?)" if near else ""
