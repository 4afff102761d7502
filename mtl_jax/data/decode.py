"""One image, encoded or as an array, to uint8 [H, W, C]. Unusual kinds are refused unless `convert` asks for them."""

import contextlib
import hashlib
import importlib.util
import io
import os
import struct
import threading
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps, features

from mtl_jax.data import transforms
from mtl_jax.data.damage import START, image_kind, in_one_line, looks_like, png_fault, quiet
from mtl_jax.data.source import Images
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError

# Kinds that a build of Pillow may lack, with its name of the feature.
OPTIONAL = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}
PHOTOGRAPHS = ("MPO", "HEIF")  # their first frame is the image, the others previews, depths or bursts
ORIENTATION, DNG_VERSION, SUBFILE_TYPE, SUB_IMAGES = 0x0112, 50706, 254, 330  # EXIF and TIFF tags
# Advice in messages: the flag of `python -m mtl_jax.data`, and the key of a config.
SKIP = "skip it with --skip-corrupt (data.skip_corrupt=True)"
CONVERT = "--convert (data.convert=True)"
PLAIN_MODES = ("1", "L", "RGB")
SIXTEEN_BIT = ("I", "I;16", "I;16B", "I;16L", "I;16N")
# Modes that are not plain: what is unusual about them, and what --convert makes of them.
UNUSUAL = {
    **dict.fromkeys(SIXTEEN_BIT, ("16 bits a channel", "its upper 8 bits")),
    **dict.fromkeys(("CMYK", "YCbCr", "LAB", "HSV"), ("the colour space {mode}", "RGB")),
    **dict.fromkeys(("P", "PA"), ("a palette", "RGB")),
    **dict.fromkeys(("RGBA", "LA", "La", "RGBa"), ("an alpha channel", "seen on white")),
}


_one_large_image = threading.Lock()  # so that many threads do not each hold hundreds of megabytes


class CorruptImage(DataError):
    """A file is damaged or not an image; `skip_corrupt` skips it."""


def reason(error: CorruptImage) -> str:
    """Returns an error's message without its advice, for callers that have no `skip_corrupt`."""
    return str(error).rpartition("; ")[0] or str(error)


def load(images: Images, index: int, transform: Transform) -> tuple[np.ndarray, bytes]:
    """Returns image `index` as stored, uint8 [H, W, C], and the digest of its decoded pixels before resizing.

    Raises:
        CorruptImage: it is damaged or not an image.
        DataError: it is of an unusual kind, and `transform.convert` is not set or cannot help.
    """
    raw = images.read(index)
    pixels = decode(raw, images.where(index), transform)
    if images.turns:
        pixels = np.ascontiguousarray(np.rot90(pixels, images.turns))
    return transforms.store(pixels, transform), digest(pixels)


def digest(pixels: np.ndarray) -> bytes:
    """Returns a digest of 16 bytes of decoded pixels [H, W, C] and their shape."""
    return hashlib.blake2b(np.ascontiguousarray(pixels), digest_size=16, salt=b"%dx%dx%d" % pixels.shape).digest()


def read_image(file: str | os.PathLike, transform: Transform) -> np.ndarray:
    """Returns the image in a file, whatever its name; see `decode`. A file that is not an image is not read whole.

    Raises:
        CorruptImage: it cannot be read, is damaged or not an image.
        DataError: it is of an unusual kind, and `transform.convert` is not set or cannot help.
    """
    try:
        with open(file, "rb", buffering=0) as opened:
            start = opened.read(START)
            raw = start + opened.read() if image_kind(start) else start
    except OSError as error:
        raise CorruptImage(f"{file}: cannot be read ({error.strerror}); fix it, or {SKIP}") from None
    return decode(raw, str(file), transform)


@quiet
def decode(raw: bytes | np.ndarray, where: str, transform: Transform) -> np.ndarray:
    """Returns an image, uint8 [H, W, C], at its own size, or smaller if that has more than `FULL_PIXELS`.

    Args:
        raw: an encoded image, or a decoded one, uint8 [H, W] or [H, W, C].
        where: what messages call it.
        transform: C is `transform.channels`; if that is 0, as many as the image has.

    Raises:
        CorruptImage: it is damaged or not an image.
        DataError: it is of an unusual kind, and `transform.convert` is not set or cannot help.
    """
    if isinstance(raw, np.ndarray):
        return _set_channels(_checked_array(raw, where), transform.channels, where)
    image = open_image(raw, where, transform.max_pixels)
    refuse_unusual(image, where, transform.convert)
    with _one_large_image if image.width * image.height > transforms.FULL_PIXELS else contextlib.nullcontext():
        try:
            image.load()
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
            raise CorruptImage(f"{where}: damaged image ({in_one_line(error)}); replace it, or {SKIP}") from None
        return to_pixels(image, transform)


def to_pixels(image: Image.Image, transform: Transform) -> np.ndarray:
    """Returns the pixels of an image that `refuse_unusual` lets pass, uint8 [H, W, C]; see `decode`."""
    plain = _plain(image, transform)
    wanted = {1: "L", 3: "RGB"}.get(transform.channels, "RGB" if plain.mode == "RGB" else "L")
    plain = plain if plain.mode == wanted else plain.convert(wanted)
    factor = transforms.reduction(plain.size)
    array = np.asarray(plain.reduce(factor) if factor > 1 else plain)
    return array[:, :, None] if array.ndim == 2 else array


@quiet
def open_image(raw: bytes, where: str, max_pixels: int = transforms.MAX_PIXELS) -> Image.Image:
    """Returns an image after reading its header; a large JPEG then has its reduced size, see `transforms.reduction`.

    Raises:
        CorruptImage: it is none, damaged, over `max_pixels`, or of a kind that needs a package that is not there.
    """
    if not raw:
        raise CorruptImage(f"{where}: the file is empty (0 bytes); replace it, or {SKIP}")
    kind = image_kind(raw)
    if kind is None:
        raise CorruptImage(f"{where}: not an image but {looks_like(raw)}; replace it, or {SKIP}")
    if needed := needed_package(kind):
        raise CorruptImage(f"{where}: a {kind} image needs {needed}; install it, or {SKIP}")
    try:
        image = _opener(kind)(io.BytesIO(raw))
    except (SyntaxError, IndexError, TypeError, struct.error):
        raise CorruptImage(f"{where}: not an image but a damaged {kind} header; replace it, or {SKIP}") from None
    except Exception as error:  # as in `decode`
        raise CorruptImage(f"{where}: not an image but {in_one_line(error)}; replace it, or {SKIP}") from None
    if kind == "PNG" and (fault := png_fault(raw)):
        raise CorruptImage(f"{where}: damaged image ({fault}); replace it, or {SKIP}")
    if kind == "TIFF" and _is_preview(image, raw):
        raise CorruptImage(f"{where}: not an image but a camera's raw file; export it as JPEG, or {SKIP}")
    width, height = image.size
    if width * height > max_pixels:
        raise CorruptImage(
            f"{where}: {width} x {height} pixels, over max_pixels, {max_pixels / 1e6:g} million; "
            f"raise data.max_pixels (--max-pixels), or {SKIP}"
        )
    if kind == "JPEG" and (factor := transforms.reduction(image.size)) > 1:
        image.draft(None, (max(1, width // factor), max(1, height // factor)))
    return image


def needed_package(kind: str) -> str:
    """Returns what has to be installed before images of a kind (see `image_kind`) can be read, '' if nothing."""
    if kind == "HEIC":
        return "" if importlib.util.find_spec("pillow_heif") else "pillow-heif (pip install 'mtl_jax[heic]')"
    lacking = kind in OPTIONAL and not features.check(OPTIONAL[kind])
    return "another build of Pillow (pip install --upgrade pillow)" if lacking else ""


def _opener(kind: str) -> Callable[[io.BytesIO], Image.Image]:
    """Returns what opens images of a kind. `Image.open` would compare pixels with a limit that all programs share."""
    if kind == "HEIC":
        from pillow_heif import HeifImageFile  # slow, and not everybody has it

        return HeifImageFile
    if kind not in Image.OPEN:
        Image.init()
    return Image.OPEN[kind][0]


def _is_preview(image: Image.Image, raw: bytes) -> bool:
    """Returns whether a TIFF is a camera's raw file, of which Pillow reads a small preview."""
    tags = image.tag_v2
    return DNG_VERSION in tags or raw[8:10] == b"CR" or bool(tags.get(SUBFILE_TYPE, 0) & 1 and SUB_IMAGES in tags)


@quiet
def refuse_unusual(image: Image.Image, where: str, convert: bool) -> None:
    """Raises DataError for an image that only `convert` takes, and for one that nothing here can read."""
    kind = unusual(image)
    if kind is None:
        return
    feature, result = kind
    if result is None:
        raise DataError(f"{where}: an image of mode {image.mode}, which is not 8-bit; convert it to 8-bit RGB or grey")
    if not convert:
        raise DataError(f"{where}: the image has {feature}; convert it, or take it as {result} with {CONVERT}")


def unusual(image: Image.Image) -> tuple[str, str | None] | None:
    """Returns what is unusual about an image, and what `convert` makes of it (None: it cannot); None if it is plain."""
    if getattr(image, "is_animated", False) and image.format not in PHOTOGRAPHS:
        return f"{image.n_frames} frames", "its first frame"
    if "transparency" in image.info:
        return "transparency", "seen on white"
    if image.mode not in PLAIN_MODES:
        feature, result = UNUSUAL.get(image.mode, ("", None))
        return feature.format(mode=image.mode), result
    orientation = _orientation(image)
    return None if orientation in (0, 1) else (f"an EXIF orientation ({orientation})", "turned upright")


def _orientation(image: Image.Image) -> int:
    if "exif" not in image.info and image.format not in ("TIFF", "MPO"):
        return 1
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError):
        return 1  # damaged EXIF data turn nothing


def _plain(image: Image.Image, transform: Transform) -> Image.Image:
    """Returns an image in mode RGB, L or 1."""
    if transform.convert and transform.upright:
        image = ImageOps.exif_transpose(image)
    if image.mode in PLAIN_MODES and "transparency" not in image.info:
        return image
    if image.mode in SIXTEEN_BIT:
        return Image.fromarray((np.clip(np.asarray(image, np.int64), 0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "La", "RGBa", "PA") or "transparency" in image.info:
        front = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", front.size, "white"), front).convert("RGB")
    return image.convert("RGB")


def _checked_array(raw: np.ndarray, where: str) -> np.ndarray:
    pixels = raw[:, :, None] if raw.ndim == 2 else raw
    if raw.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3):
        raise DataError(
            f"{where}: an array of {raw.dtype} {list(raw.shape)}; an image must be uint8 [H, W], [H, W, 1] or [H, W, 3]"
        )
    return np.ascontiguousarray(pixels)


def _set_channels(pixels: np.ndarray, channels: int, where: str) -> np.ndarray:
    if channels in (0, pixels.shape[2]):
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
