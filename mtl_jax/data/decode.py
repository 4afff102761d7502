"""One image, encoded or as an array, to uint8 [H, W, C]. Unusual kinds are refused unless `convert` asks for them."""

import functools
import hashlib
import io
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mtl_jax.data import transforms
from mtl_jax.data.damage import looks_like
from mtl_jax.data.source import Images
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError

MAX_PIXELS = 64_000_000
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# No others, on purpose: Pillow hands EPS to an external program, for one. A build of Pillow may lack some of these.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")  # Pillow opens MPO as JPEG
ORIENTATION = 0x0112  # the EXIF tag
# Advice in messages: the flag of `python -m mtl_jax.data`, and the key of a config.
SKIP = "leave it out with --skip-corrupt (data.skip_corrupt=True)"
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


class CorruptImage(DataError):
    """A file is no image, or a damaged one; `skip_corrupt` leaves it out."""


def reason(error: CorruptImage) -> str:
    """Returns an error's message without its advice, for callers that have no `skip_corrupt`."""
    return str(error).rpartition("; ")[0] or str(error)


def load(images: Images, index: int, transform: Transform) -> tuple[np.ndarray, bytes]:
    """Returns image `index` as stored, uint8 [H, W, C], and the digest of its decoded pixels before resizing.

    Raises:
        CorruptImage: it is no image, or a damaged one.
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


def decode(raw: bytes | np.ndarray, where: str, transform: Transform) -> np.ndarray:
    """Returns an image at its own size, uint8 [H, W, C].

    Args:
        raw: an encoded image, or a decoded one, uint8 [H, W] or [H, W, C].
        where: what messages call it.
        transform: C is `transform.channels`; if that is 0, as many as the image has.

    Raises:
        CorruptImage: it is no image, or a damaged one.
        DataError: it is of an unusual kind, and `transform.convert` is not set or cannot help.
    """
    if isinstance(raw, np.ndarray):
        return _set_channels(_checked_array(raw, where), transform.channels, where)
    image = open_image(raw, where)
    refuse_unusual(image, where, transform.convert)
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and others
        raise CorruptImage(f"{where}: damaged image ({error}); replace it, or {SKIP}") from None
    return to_pixels(image, transform)


def to_pixels(image: Image.Image, transform: Transform) -> np.ndarray:
    """Returns the pixels of an image that `refuse_unusual` lets pass, uint8 [H, W, C]; see `decode` for C."""
    plain = _plain(image, transform)
    wanted = {1: "L", 3: "RGB"}.get(transform.channels, "RGB" if plain.mode == "RGB" else "L")
    array = np.asarray(plain if plain.mode == wanted else plain.convert(wanted))
    return array[:, :, None] if array.ndim == 2 else array


def open_image(raw: bytes, where: str) -> Image.Image:
    """Returns an image after reading its header; raises CorruptImage if it is none, damaged, or over `MAX_PIXELS`."""
    if not raw:
        raise CorruptImage(f"{where}: the file is empty (0 bytes); replace it, or {SKIP}")
    try:
        image = Image.open(io.BytesIO(raw), formats=_formats())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise CorruptImage(f"{where}: too many pixels ({error}); remove it, or {SKIP}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        content = looks_like(raw) if isinstance(error, UnidentifiedImageError) else str(error)
        raise CorruptImage(f"{where}: not an image but {content}; replace it, or {SKIP}") from None
    if image.format == "PNG" and (fault := png_fault(raw)):
        raise CorruptImage(f"{where}: damaged image ({fault}); replace it, or {SKIP}")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise CorruptImage(
            f"{where}: {width} x {height} pixels, over the limit of {MAX_PIXELS // 10**6} million; remove it, or {SKIP}"
        )
    return image


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


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


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
    if getattr(image, "is_animated", False):
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
