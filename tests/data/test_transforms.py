"""Resizing and cropping are torchvision's on Pillow images, bit for bit; checked against Pillow's arithmetic."""

import math

import numpy as np
import pytest
import torchvision_models
from PIL import Image

from mtl_jax.data import transforms
from mtl_jax.data.cache import reader
from mtl_jax.data.load import Options, folder_for, splitting_of
from mtl_jax.data.transforms import Transform
from mtl_jax.errors import DataError

BITS = 22  # of the fixed-point coefficients in Pillow's Resample.c


def coefficients(size: int, new: int) -> np.ndarray:
    """Returns Pillow's triangle filter with antialiasing as integers [new, size], scaled by 2^22 (Resample.c)."""
    scale = size / new
    support = max(scale, 1.0)
    weights = np.zeros((new, size), np.int64)
    for i in range(new):
        center = (i + 0.5) * scale
        first, last = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), size)
        taps = np.array([max(0.0, 1 - abs((x - center + 0.5) / max(scale, 1.0))) for x in range(first, last)])
        weights[i, first:last] = np.floor(taps / taps.sum() * (1 << BITS) + 0.5)
    return weights


def resample(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resizes [H, W, C] as Pillow does: rows, rounded to 8 bits, then columns."""

    def one_axis(array: np.ndarray, weights: np.ndarray) -> np.ndarray:
        sums = np.tensordot(weights, array.astype(np.int64), axes=(1, 0)) + (1 << (BITS - 1))
        return np.clip(sums >> BITS, 0, 255).astype(np.uint8)

    across = pixels
    if width != pixels.shape[1]:
        across = one_axis(pixels.transpose(1, 0, 2), coefficients(pixels.shape[1], width)).transpose(1, 0, 2)
    return one_axis(across, coefficients(pixels.shape[0], height)) if height != pixels.shape[0] else across


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("shape", [(84, 84), (120, 84), (84, 131), (375, 500), (50, 40), (92, 92), (93, 500)])
def test_pytorch_preset_92_to_80(shape):
    """torchvision: Resize(92) on the shorter side, CenterCrop(80)."""
    pixels = noise(*shape)
    height, width = shape
    # torchvision.transforms.functional._compute_resized_output_size
    short, long = min(shape), max(shape)
    new_long = int(92 * long / short)
    new_width, new_height = (92, new_long) if width <= height else (new_long, 92)
    resized = resample(pixels, new_width, new_height) if short != 92 else pixels
    # torchvision.transforms.functional.center_crop
    top, left = round((resized.shape[0] - 80) / 2.0), round((resized.shape[1] - 80) / 2.0)
    expected = resized[top : top + 80, left : left + 80]
    np.testing.assert_array_equal(transforms.store(pixels, Transform(image_size=80, resize=92)), expected)


def test_stored_at_92_then_cropped_is_the_same():
    pixels = noise(84, 84)
    stored = transforms.store(pixels, Transform(image_size=92))
    np.testing.assert_array_equal(stored[6:86, 6:86], transforms.store(pixels, Transform(image_size=80, resize=92)))


@pytest.mark.parametrize(("side", "start"), [(81, 0), (82, 1), (83, 2), (84, 2), (85, 2), (87, 4)])
def test_odd_margins_round_half_to_even(side, start):
    pixels = noise(side, side)
    expected = pixels[start : start + 80, start : start + 80]
    np.testing.assert_array_equal(transforms.center_crop(Image.fromarray(pixels), 80), expected)
    assert start == round((side - 80) / 2.0)


def test_grey_and_native():
    pixels = noise(40, 40, 1)
    assert transforms.store(pixels, Transform()) is pixels
    assert transforms.store(pixels, Transform(image_size=40)) is pixels
    smaller = transforms.store(pixels, Transform(image_size=28))
    np.testing.assert_array_equal(smaller, resample(pixels, 28, 28))


@pytest.mark.parametrize("interpolation", transforms.INTERPOLATIONS)
def test_torchvision_itself(interpolation):
    functional = torchvision_models.load("torchvision.transforms.functional")
    mode = functional.InterpolationMode(interpolation)
    for shape in ((84, 84), (375, 500), (131, 84)):
        image = Image.fromarray(noise(*shape))
        expected = functional.center_crop(functional.resize(image, 92, mode), 80)
        found = transforms.store(np.asarray(image), Transform(80, 92, interpolation=interpolation))
        np.testing.assert_array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("shape", [(32, 32), (500, 375), (300, 224)])
def test_bicubic_is_pillows(shape):
    image = Image.fromarray(noise(*shape))
    found = transforms.store(np.asarray(image), Transform(224, interpolation="bicubic"))
    width, height = (224 if side == min(shape) else int(224 * side / min(shape)) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC) if min(shape) != 224 else image
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    np.testing.assert_array_equal(found, resized.crop((left, top, left + 224, top + 224)))


def test_an_unknown_interpolation_is_refused():
    with pytest.raises(DataError, match=r"data\.interpolation: 'cubic'; it must be one of bilinear, bicubic"):
        Transform(224, interpolation="cubic")


def test_a_networks_description_prepares_images():
    described = {"resize": 256, "interpolation": "bicubic"}
    wanted = Transform(224, 256, 3, convert=True, interpolation="bicubic")
    assert transforms.of_network(described, (224, 224, 3)) == wanted
    assert transforms.of_network({"resize": 0}, (32, 32, 1)) == Transform(32, 0, 1, convert=True)


def test_caches_of_bilinear_images_stay_valid():
    folders = [folder_for("folder", [], Options(image_size=32, interpolation=i, cache_dir="c"))
               for i in transforms.INTERPOLATIONS]  # fmt: skip
    state = {**vars(Transform(32)), **vars(splitting_of(Options())), "rotations": False, "skip_corrupt": False}
    del state["interpolation"], state["max_pixels"]
    assert folders[0] != folders[1]
    assert folders[0].name == f"folder-{reader.key([], state)}"


def test_ratio_is_kept(tmp_path):
    assert transforms.resize(Image.new("RGB", (500, 333)), 84).size == (int(84 * 500 / 333), 84)
    assert transforms.resize(Image.new("RGB", (333, 500)), 84).size == (84, math.floor(84 * 500 / 333))
