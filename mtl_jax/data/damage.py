"""What a file is by its content: which kind of image, or what else; and what reading a damaged file raises."""

import contextlib
import logging
import lzma
import os
import re
import tarfile
import threading
import tokenize
import warnings
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


START = 64  # bytes at the beginning of a file that show what it is
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# By Pillow's names. No others, on purpose: Pillow hands EPS to an external program, for one.
_IMAGES = {
    "JPEG": rb"\xff\xd8\xff",  # MPO, JFIF and EXIF files too
    "PNG": re.escape(PNG_SIGNATURE),
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF....WEBP",
    "TIFF": rb"II(?:\*\0|\+\0|\0\*)|MM(?:\0\*|\0\+|\*\0)",
    "BMP": rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0",
    "PPM": rb"P[1-6]\s+[\d#]",
    "JPEG2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
}
_IMAGE = re.compile(b"|".join(b"(?P<%s>%s)" % (kind.encode(), start) for kind, start in _IMAGES.items()), re.DOTALL)
_OTHERS = {
    "an HTML page (a download that failed?)": rb"(?i)\s*(<!doctype html|<html|<head)",
    "a Git LFS pointer (run: git lfs pull)": rb"(?i)\s*version https://git-lfs",
    "a PDF file": rb"%PDF",
    "a Photoshop file": rb"8BPS",
    "an SVG drawing": rb"\s*<svg",
    "an XML file (an annotation, or an SVG drawing)": rb"\s*<\?xml",
    "a JPEG XL image, which is not supported (convert it to JPEG or PNG)": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "a video": rb"....ftyp(qt  |isom|iso[2-9]|mp4[12]|avc1|M4V |3gp)|\x1aE\xdf\xa3|RIFF....AVI ",
    "a camera's raw file (export it as JPEG)": rb"....ftypcrx |FUJIFILMCCD-RAW|IIU\0|IIR[OS]",
}
_AVIF, _HEIC = {b"avif", b"avis"}, {b"mif1", b"mif2", b"msf1"}


def image_kind(file: str | os.PathLike | bytes) -> str | None:
    """Returns which kind of image a file holds, by its first `START` bytes, whatever it is called.

    Args:
        file: its path, or its content, of which the first `START` bytes suffice.

    Returns:
        Pillow's name of the format, such as 'JPEG' or 'AVIF'; 'HEIC' for HEIC and HEIF, which `decode` reads where
        pillow-heif is installed; None if it is not an image.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(file, bytes):
        start = file[:START]
    else:
        with open(file, "rb", buffering=0) as opened:
            start = opened.read(START)
    if match := _IMAGE.match(start):
        return match.lastgroup
    if start[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(start[:4]), len(start))
    brands = {start[i : i + 4] for i in range(8, end, 4)}
    if brands & _AVIF:
        return "AVIF"
    is_heic = brands & _HEIC or any(brand[:3] in (b"hei", b"hev") for brand in brands)
    return "HEIC" if is_heic else None


class _Quiet(contextlib.ContextDecorator):
    """Keeps what Pillow warns of and logs from the screen while any thread decodes.

    All threads share it: each with a `warnings.catch_warnings` of its own would restore the filters of another.
    """

    def __init__(self) -> None:
        self.lock, self.depth, self.saved = threading.Lock(), 0, warnings.catch_warnings()
        self.log = logging.getLogger("PIL.TiffImagePlugin")

    def __enter__(self) -> None:
        with self.lock:
            self.depth += 1
            if self.depth == 1:
                self.saved = warnings.catch_warnings()
                self.saved.__enter__()
                warnings.filterwarnings("ignore", module=r"(PIL|pillow_heif)\b")
                self.log.disabled = True

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.depth -= 1
            if not self.depth:
                self.log.disabled = False
                self.saved.__exit__()


quiet = _Quiet()


def png_fault(raw: bytes) -> str:
    """Returns what is wrong with the chunks of a PNG, '' if nothing. Pillow does not compare the pixels' checksums."""
    start = len(PNG_SIGNATURE)
    while start + 12 <= len(raw):
        kind, end = raw[start + 4 : start + 8], start + 8 + int.from_bytes(raw[start : start + 4], "big")
        if end + 4 > len(raw):
            break
        if zlib.crc32(memoryview(raw)[start + 4 : end]) != int.from_bytes(raw[end : end + 4], "big"):
            return f"the check sum of a chunk {kind!r} is wrong"
        if kind == b"IEND":
            return ""
        start = end + 4
    return "the file is cut"


def in_one_line(error: Exception) -> str:
    """Returns an error's message without line breaks."""
    return " ".join(str(error).split())


def looks_like(raw: bytes) -> str:
    """Returns what the first bytes of a file show it to be, for messages."""
    return known_content(raw) or f"data that starts with {raw[:8]!r}"


def known_content(raw: bytes) -> str | None:
    """Returns what a file is, by its first bytes, if it is one that often stands in place of data; else None."""
    return next((what for what, pattern in _OTHERS.items() if re.match(pattern, raw[:512], re.DOTALL)), None)
