"""Resizing and cropping of 8-bit images, bit for bit what torchvision's transforms do to a Pillow image."""

from PIL import Image


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resizes the shorter side to `size` pixels, bilinear with antialiasing; as torchvision's `Resize(size)`.

    The longer side becomes `int(size * longer / shorter)`; an image whose shorter side is right is returned as it is.
    """
    width, height = image.size
    if min(width, height) == size:
        return image
    new = tuple(size if side == min(width, height) else int(size * side / min(width, height)) for side in image.size)
    return image.resize(new, Image.Resampling.BILINEAR)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Cuts the central `size` x `size` square; odd margins are rounded half to even, as torchvision's `CenterCrop`."""
    width, height = image.size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def resize_and_crop(image: Image.Image, resize_to: int, crop_to: int) -> Image.Image:
    """Returns the central `crop_to` square of `image` with its shorter side resized to `resize_to`."""
    return center_crop(resize(image, resize_to), crop_to)
