"""Files that are not what they should be: what reading them raises, and what they often are instead."""

import lzma
import tarfile
import tokenize
import zipfile
import zlib

# What NumPy, zipfile, tarfile, the decompressors and json raise for a damaged file. None of them has an exception just
# for that: a false offset in an archive is an OSError, a header that ends too soon a TokenError, an impossible shape an
# OverflowError or a MemoryError, another kind of object in place of a mapping a TypeError. Let DataError, which is a
# ValueError, pass before you catch these.
DAMAGE = (
    OSError, EOFError, ValueError, OverflowError, KeyError, TypeError, AttributeError, SyntaxError, MemoryError,
    RuntimeError,  # zipfile's for encrypted members; NotImplementedError and RecursionError are among its kinds
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError,
)  # fmt: skip


def looks_like(raw: bytes) -> str:
    """Returns what the first bytes of a file show it to be, for messages."""
    return known_content(raw) or f"data that starts with {raw[:8]!r}"


def known_content(raw: bytes) -> str | None:
    """Returns what a file is, by its first bytes, if it is one that often stands in place of data; else None."""
    start = raw[:512].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page (a download that failed?)"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run: git lfs pull)"
    return None
