"""The photographs in folders, found by what files hold, not by their names; what is no image is named, not passed over.

The classes of a support folder are its folders, as of the data sets of `class_folders`: images in a class folder and in
folders below it are one class.
"""

import mimetypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mtl_jax.data import decode
from mtl_jax.data.sources import class_folders, trees
from mtl_jax.errors import DataError

START = 512  # bytes that show what a file is that is no image


class Photographs(NamedTuple):
    """The images under a folder.

    files: their names relative to the folder, sorted; [''] if the folder is itself a file.
    left_out: a line for each other file: its path and why it is left out.
    """

    files: list[str]
    left_out: list[str]


class Support(NamedTuple):
    """The images of a folder of class folders, the class of each, and the lines of what is left out."""

    files: list[Path]
    classes: list[str]
    left_out: list[str]


def find_images(folder: Path) -> Photographs:
    """The image files under a folder, at any depth. Raises DataError where there is no such folder or no file in it."""
    if folder.is_file():
        return Photographs([""], [])
    files = _tree(folder).files
    if not files:
        raise DataError(f"{folder}: has no images")
    return _sorted_out(folder, files)


def find_support(folder: Path) -> Support:
    """The images in a folder of class folders.

    Raises:
      DataError: no such folder, no image in it, an image outside the class folders, or a class folder without images.
    """
    if folder.is_file():
        raise DataError(f"{folder}: a file; --support is a folder with one folder per class")
    tree = _tree(folder)
    files, left_out = _sorted_out(folder, tree.files)
    stray = next((file for file in files if "/" not in file), None)
    if stray:
        raise DataError(f"{folder / stray}: in no class folder; move it into one, or elsewhere")
    if not files:
        raise DataError(f"{folder}: has no images{_because(left_out)}")
    deep = [file for file in tree.files if "/" in file]
    for top in sorted({name.split("/", 1)[0] for name in (*deep, *tree.empty)}):
        if not any(file.startswith(f"{top}/") for file in files):
            lines = [line for line in left_out if line.startswith(f"{folder / top}/")]
            raise DataError(
                f"{folder / top}: a class without images{_because(lines)}; add some, or move the folder elsewhere"
            )
    class_of = {file: name for name, own in class_folders.by_folder(tree, files, 0).items() for file in own}
    return Support([folder / file for file in files], [class_of[file] for file in files], left_out)


def _tree(folder: Path) -> trees.Tree:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give one with images")
    return trees.folder_tree(folder)


def _sorted_out(folder: Path, files: Sequence[str]) -> Photographs:
    images, left_out = [], []
    for file in files:
        reason = _why_left_out(folder / file)
        if reason:
            left_out.append(f"{folder / file}: {reason}")
        else:
            images.append(file)
    return Photographs(images, left_out)


def _why_left_out(path: Path) -> str:
    """Why a file is passed over; '' for an image, and for what should be one but is empty or cannot be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(START)
    except OSError:
        return ""  # reading it will say why
    kind = decode.image_kind(start)
    if kind:
        needed = decode.needed_package(kind)
        return f"a {kind} image needs {needed}" if needed else _raw_file(path) if kind == "TIFF" else ""
    if start:
        return f"not an image but {decode.looks_like(start)}"
    is_named_image = (mimetypes.guess_type(path.name)[0] or "").startswith("image/")
    return "" if is_named_image else "the file is empty (0 bytes)"


def _raw_file(path: Path) -> str:
    """Why a TIFF is no image but a camera's raw file, which often lies beside its JPEG; '' if it is an image."""
    try:
        decode.open_image(path.read_bytes(), "")
    except decode.CorruptImage as error:
        message = decode.reason(error).removeprefix(": ")
        return message if "raw file" in message else ""
    return ""


def _because(left_out: Sequence[str]) -> str:
    if not left_out:
        return ""
    files = "1 file is" if len(left_out) == 1 else f"{len(left_out)} files are"
    return f"; {files} left out{', such as' if len(left_out) > 1 else ':'} {left_out[0]}"
