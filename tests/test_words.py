"""Counted nouns, and that no message counts without them."""

import re
from pathlib import Path

import pytest

import mtl_jax
from mtl_jax.words import counted, nearest


@pytest.mark.parametrize(("count", "noun", "said"), [
    (1, "image", "1 image"), (0, "image", "0 images"), (2, "class", "2 classes"), (3, "query", "3 queries"),
    (1, "query", "1 query"), (2, "day", "2 days"), (2, "failure class", "2 failure classes"), (2, "box", "2 boxes"),
])  # fmt: skip
def test_a_noun_agrees_with_its_number(count, noun, said):
    assert counted(count, noun) == said


def test_a_number_has_its_format():
    assert counted(38400, "image", ",") == "38,400 images"


def test_the_nearest_word_is_named():
    assert nearest("clasify", ["train", "classify"], "--") == " (did you mean --classify?)"
    assert nearest("x", ["train", "classify"]) == ""


def test_no_message_makes_a_plural_of_its_own():
    endings = re.compile(r"""['"]e?s['"] if |else ['"]e?s['"]""")
    for path in Path(mtl_jax.__file__).parent.rglob("*.py"):
        assert not endings.search(path.read_text(encoding="utf-8")), path
