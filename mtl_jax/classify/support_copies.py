"""Support images that are the same photograph: under two labels they contradict each other, else they count twice."""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from mtl_jax.errors import DataError


class Known(NamedTuple):
    """A support image: the digest of its decoded pixels, b'' where it came as features; what a message calls it."""

    digest: bytes
    where: str


def check(images: Sequence[Known], labels: Sequence[Any]) -> None:
    """Refuses a photograph under two labels, and warns of one that is there twice under one.

    Raises:
      DataError: names both images and both labels.
    """
    first: dict[bytes, tuple[Known, Any]] = {}
    copies = []
    for image, label in zip(images, labels, strict=True):
        if not image.digest:
            continue
        known, its = first.setdefault(image.digest, (image, label))
        if its != label:
            raise DataError(
                f"{image.where}: the same image as {known.where}, but of class {str(label)!r} where that is of "
                f"{str(its)!r}; leave it in one of them"
            )
        if known is not image:
            copies.append(f"{image.where} is the same image as {known.where}")
    if copies:
        more = f" (and {len(copies) - 1} more)" if len(copies) > 1 else ""
        warnings.warn(f"{copies[0]}{more}: a copy counts twice, and makes the probabilities too sure", stacklevel=3)
