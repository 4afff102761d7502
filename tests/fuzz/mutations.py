"""Random damage to a file's bytes, and files that were made to do harm."""

import io
import os
import pickle
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

Mutation = Callable[[np.random.Generator, bytes], bytes]
_HUGE = (b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 8, b"\x80" + b"\0" * 7)
_TOKENS = (
    b"-1",
    b"1e999",
    b"NaN",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"9" * 30,
    b"[" * 5000,
    b"true",
    b"4294967296",
    b"0.5",
)


def flip(rng: np.random.Generator, data: bytes) -> bytes:
    """One to four bits."""
    changed = bytearray(data)
    for at in rng.integers(len(data), size=rng.integers(1, 5)):
        changed[at] ^= 1 << rng.integers(8)
    return bytes(changed)


def truncate(rng: np.random.Generator, data: bytes) -> bytes:
    """The end is missing."""
    return data[: rng.integers(len(data))]


def append(rng: np.random.Generator, data: bytes) -> bytes:
    """Something follows the end."""
    return data + rng.bytes(rng.integers(1, 64))


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    """Noise over a part."""
    at, noise = rng.integers(len(data)), rng.bytes(rng.integers(1, 48))
    return (data[:at] + noise + data[at + len(noise) :])[: len(data)]


def lie(rng: np.random.Generator, data: bytes) -> bytes:
    """An extreme number where a length, a count or an offset may stand, in the first or the last bytes for the most."""
    near = rng.integers(min(len(data), 200))
    at = [near, max(0, len(data) - 1 - near), rng.integers(len(data))][rng.integers(3)]
    value = _HUGE[rng.integers(len(_HUGE))]
    return data[:at] + value + data[at + len(value) :]


def remove(rng: np.random.Generator, data: bytes) -> bytes:
    """A part is missing."""
    start, size = rng.integers(len(data)), rng.integers(1, 100)
    return data[:start] + data[start + size :]


def repeat(rng: np.random.Generator, data: bytes) -> bytes:
    """A part stands there many times."""
    start, size = rng.integers(len(data)), rng.integers(1, 100)
    return data[: start + size] + data[start : start + size] * int(rng.integers(1, 200)) + data[start + size :]


def another_token(rng: np.random.Generator, data: bytes) -> bytes:
    """Another value for a number or a string of a text; of a binary file, for what looks like one."""
    found = [match.span() for match in re.finditer(rb'"[^"\n]{0,80}"|-?\d[\d.]*', data[:200_000])]
    if not found:
        return flip(rng, data)
    start, end = found[rng.integers(len(found))]
    return data[:start] + _TOKENS[rng.integers(len(_TOKENS))] + data[end:]


MUTATIONS: tuple[Mutation, ...] = (flip, truncate, append, overwrite, lie, remove, repeat, another_token)


class _Runs:
    """Pickled, it is a program that makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return os.mkdir, (str(self._path),)


def _tar(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname, member.size = kind, link, 4 if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(b"evil"))
    return file.getvalue()


def _zip(name: str, attributes: int = 0) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = attributes << 16
        archive.writestr(info, b"/etc/passwd")
    return file.getvalue()


def _png_bomb() -> bytes:
    """50,000 x 50,000 pixels in a small file, of which the header is enough to know it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = (50_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def _npy_header(shape: str, descr: str = "'|u1'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header


def made_to_harm(trap: Path) -> list[tuple[str, bytes]]:
    """(a sample's name, the content that takes its file's place); `trap` is a folder that must not come to be."""
    runs = pickle.dumps(_Runs(trap))
    names = (
        "../evil.png",
        "/tmp/evil.png",
        "test/../../evil.png",
        "..\\evil.png",
        "C:\\evil.png",
        "test/c0/../../../evil.png",
    )
    links = [(kind, target) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) for target in ("/etc/passwd", "../../evil")]
    member = "test/c0/0.png"
    deep = ("config.json", "frozen episodes", "cache", "lists of classes", "metrics.jsonl")
    pickles = (
        "pickle (miniImageNet cache)",
        "pickle (tieredImageNet)",
        "cifar-100-python",
        "pth",
        "pth, older",
        "network, pth",
    )
    return [
        *[("tar", _tar(name)) for name in names], *[("tar.gz", _tar(name, mode="w:gz")) for name in names],
        *[("zip", _zip(name)) for name in names],
        *[("tar", _tar(member, *link)) for link in links], ("zip", _zip(member, 0o120777)),
        *[("tar", _tar(member, kind)) for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)],
        *[(name, runs) for name in pickles],
        *[(name, b"\x8e" + (1 << 50).to_bytes(8, "little")) for name in ("pickle (protocol 4)", "pth", "pth, older")],
        ("pickle (protocol 4)", b"\x80\x04(" + b"]" * 100_000 + b"."),
        ("npy weights", _npy_header("()", "'|O'") + runs), ("npy", _npy_header("()", "'|O'") + runs),
        *[("npy", _npy_header(shape)) for shape in ("(1099511627776, 8, 8, 3)", "(-1, 8, 8, 3)", "(8,) * 99")],
        ("PNG", _png_bomb()), ("safetensors", (1 << 62).to_bytes(8, "little") + b"{}"),
        ("classifier", (1 << 62).to_bytes(8, "little")),
        *[(name, b"[" * 200_000) for name in (*deep, "JSON lists of images")],
        ("CSV, UTF-16", b"\xff\xfe" + b"\0" * 300_001), ("CUB's lists", b"1 ../../../../etc/passwd\n"),
        ("JSON lists of images", b'{"image_names": ["/etc/passwd"], "image_labels": [0], "label_names": ["a"]}'),
        *[(name, b'{"a": ' * 100_000) for name in ("config.json", "lists of classes", "exported embedding")],
        ("CSV", b'filename,label\n"' + b"x" * 300_000), ("CSV", b"filename,label\n../../../../etc/passwd,x\n"),
    ]  # fmt: skip
