"""Text files as Linux, macOS and Windows write them: the one place where a byte of a list becomes a letter."""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mtl_jax.data.damage import known_content
from mtl_jax.errors import DataError

MAX_BYTES = 1 << 27  # of a text; the longest list that is known, of tieredImageNet's images, has a third of it
# In this order: the mark of UTF-32 in little endian begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
NAMES = {"utf-8": "UTF-8", "cp1252": "Windows-1252"}  # as messages call an encoding; others in capitals
ZIP = b"PK\x03\x04"
DELIMITERS = ",;\t|"
_QUOTED = re.compile(r'"[^"]*"')
CONTROLS = frozenset(map(chr, range(32))) - set("\t\n\f\x1a")


class Text(NamedTuple):
    """text: with '\\n' at the ends of lines. encoding: what it was read as, for messages."""

    text: str
    encoding: str

    def hint(self) -> str:
        """Returns what to add to a message about a name that is not there: the encoding may be the reason."""
        if self.encoding == "UTF-8":
            return ""
        return f" (the list was read as {self.encoding}; save it as UTF-8 if that is wrong)"


def decode(raw: bytes, path: str) -> Text:
    """Returns the text in a file: UTF-8 or UTF-16 with or without a mark, UTF-32 with one, else Windows-1252.

    Args:
        raw: the bytes.
        path: of the file, for messages.

    Raises:
        DataError: it is too large, a web page, or no text in the encoding that it seems to be in.
    """
    if len(raw) > MAX_BYTES:
        raise DataError(f"{path}: {len(raw)} bytes are more than a list may have ({MAX_BYTES >> 20} MiB); split it")
    if raw.startswith(ZIP):
        raise DataError(f"{path}: not a text but a zip archive, or a spreadsheet's own file; save it as CSV")
    content = known_content(raw)
    if content:
        raise DataError(f"{path}: not a text but {content}; download it again")
    encoding, mark = next(((name, mark) for mark, name in MARKS if raw.startswith(mark)), (_unmarked(raw), b""))
    name = NAMES.get(encoding, encoding.upper())
    try:
        text = raw[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not text in {name} (byte {error.start + len(mark)}: {error.reason}); save it as UTF-8"
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\x1a").lstrip("\ufeff")
    if control := next((letter for letter in text if letter in CONTROLS), None):
        raise DataError(f"{path}: not text in {name} (it has the character {control!r}); save it as UTF-8")
    return Text(text, name)


def _unmarked(raw: bytes) -> str:
    """Returns the encoding of a text without a mark at its beginning."""
    start = raw[:4096]
    zeros = [start[first::2].count(0) for first in (0, 1)]
    if max(zeros) > len(start) // 8:
        return "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def lines(text: Text) -> list[str]:
    """Returns the lines that have anything in them, without spaces around."""
    return [line.strip() for line in text.text.split("\n") if line.strip()]


def parse_json(text: Text, path: str) -> Any:
    """Returns what a JSON text holds; raises DataError where it is none."""
    try:
        return json.loads(text.text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON in {text.encoding} ({error}); fix or replace it") from None


def rows(text: Text, path: str) -> Iterator[tuple[int, Sequence[str]]]:
    """Yields the line number and the fields of each row of a CSV, its header first; empty rows are left out.

    The fields are separated by the comma, semicolon, tab or bar that its first line has most of: spreadsheets write
    semicolons where the comma is the decimal mark, and may say so in a line `sep=;` above the header.

    Raises:
        DataError: it is not a CSV.
    """
    content = text.text.lstrip()
    before = text.text[: len(text.text) - len(content)].count("\n")
    head = content.partition("\n")[0]
    delimiter = max(DELIMITERS, key=_QUOTED.sub("", head).count)
    if head.lower().startswith("sep=") and head[4:] in tuple(DELIMITERS):
        delimiter, before, content = head[4], before + 1, content.partition("\n")[2]
    reader = csv.reader(io.StringIO(content), delimiter=delimiter, skipinitialspace=True)
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                yield before + reader.line_num, [field.strip() for field in fields]
    except csv.Error as error:
        raise DataError(f"{path}: not a CSV in {text.encoding} ({error}); fix or replace it") from None
