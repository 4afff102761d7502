"""Image transforms against NumPy and Pillow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mtl_jax import augment
from mtl_jax.errors import ConfigError


def pictures(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def test_normalize_is_the_pytorch_codes():
    """/255, less the mean, by the standard deviation, each per channel."""
    images = pictures(2, 3, 4, 3)
    mean, std = np.array([125.3, 123.0, 113.9]) / 255, np.array([63.0, 62.1, 66.7]) / 255
    out = augment.normalize(images, mean=tuple(mean), std=tuple(std))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, (images / 255 - mean) / std, atol=1e-5)
    assert augment.normalize(images, mean=(0.5,), std=(0.5,), dtype=jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    # torchvision: round((length - size) / 2), and Python rounds a half to the even number
    ("length", "size", "offset"),
    [(32, 28, 2), (29, 28, 0), (31, 28, 2), (33, 28, 2), (35, 28, 4), (88, 80, 4), (92, 80, 6), (28, 28, 0)],
)
def test_center_crop_offsets(length, size, offset):
    images = pictures(2, length, size + 4, 1)
    out = augment.center_crop(images, size)
    np.testing.assert_array_equal(out, images[:, offset : offset + size, 2 : size + 2])


def test_center_crop_of_nothing():
    images = pictures(2, 5, 6, 1)
    assert augment.center_crop(images, 0) is images


def test_flip_mirrors_half_of_the_images():
    images = pictures(400, 2, 3, 1)
    out = np.asarray(augment.random_flip(keys(400), images))
    same, mirrored = (out == images).all((1, 2, 3)), (out == images[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert abs(mirrored.sum() - 200) < 40  # four standard deviations


def test_shift_takes_every_offset_and_repeats_the_edge():
    images = np.repeat(pictures(1, 5, 6, 2), 300, axis=0)
    padded = np.pad(images[0], ((2, 2), (2, 2), (0, 0)), "edge")
    choices = np.stack([padded[y : y + 5, x : x + 6] for y in range(5) for x in range(5)])
    out = np.asarray(augment.random_shift(keys(300), images, 2))
    matches = (out[:, None] == choices).all((2, 3, 4))
    assert (matches.sum(1) == 1).all()
    counts = matches.sum(0)
    assert ((counts - 12) ** 2 / 12).sum() < 51.2  # chi-square with 24 degrees of freedom, 0.999 quantile
    assert augment.random_shift(keys(300), images, 0) is images


def test_a_padded_shift_moves_black_in():
    images = pictures(200, 5, 6, 2) | 1  # no black of their own
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    out = np.asarray(augment.random_shift(keys(200), images, 2, "zero"))
    crops = np.stack([padded[:, y : y + 5, x : x + 6] for y in range(5) for x in range(5)], 1)
    assert ((out[:, None] == crops).all((2, 3, 4)).sum(1) == 1).all()


def test_color_jitter_is_torchvisions_blends_in_some_order():
    """Every image is one of the 6 orders of brightness, contrast and saturation, by factors within 1 +- strength."""
    images, strength = pictures(64, 6, 5, 3), 0.4
    out = np.asarray(augment.color_jitter(keys(64), images, strength))
    assert out.min() >= 0 and out.max() <= 255
    orders = set()
    for key, image, result in zip(keys(64), images, out, strict=True):
        order_key, factor_key = jax.random.split(key)
        order = tuple(map(int, jax.random.permutation(order_key, 3)))
        factors = 0.6 + 0.8 * np.asarray(jax.random.uniform(factor_key, (3,)), np.float64)
        np.testing.assert_allclose(result, jittered(image, order, factors), atol=2e-3)
        orders.add(order)
    assert len(orders) == 6
    assert augment.color_jitter(keys(64), images, 0.0) is images


def jittered(image, order, factors):
    x = image.astype(np.float64)
    for kind, f in zip(order, factors, strict=True):
        grey = x @ np.array([0.299, 0.587, 0.114])
        if kind == 0:
            x = f * x
        elif kind == 1:
            x = f * x + (1 - f) * grey.mean()
        else:
            x = f * x + (1 - f) * grey[..., None]
        x = np.clip(x, 0, 255)
    return x


def test_color_jitter_leaves_the_hue_of_a_grey_image():
    grey = np.repeat(pictures(8, 4, 4, 1), 3, axis=-1)
    out = np.asarray(augment.color_jitter(keys(8), grey, 0.4))
    np.testing.assert_allclose(out, np.repeat(out[..., :1], 3, axis=-1), atol=1e-3)
    np.testing.assert_allclose(augment.color_jitter(keys(8), grey[..., :1], 0.4), out[..., :1], atol=1e-3)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def boxes(keys, height, width, scale, ratio):
    box = functools.partial(augment._random_box, height=height, width=width, scale=scale, ratio=ratio)
    return jnp.stack(jax.vmap(box)(keys), 1)


@pytest.mark.parametrize("size", [12, 31, 60])  # parts are shrunk, both, and enlarged
def test_resized_crop_is_pillows_crop_and_resize(size):
    """Pillow's resize antialiases and, after a crop, sees nothing outside it; to a thousandth of a grey level."""
    images, count, options = pictures(6, 32, 40, 3), 6, ((0.08, 1.0), (3 / 4, 4 / 3))
    crop = jax.jit(functools.partial(augment.random_resized_crop, size=size))
    out = crop(keys(count), images)
    assert out.shape == (count, size, size, 3)
    assert out.dtype == jnp.float32
    for picture, image, box in zip(out, images, np.asarray(boxes(keys(count), 32, 40, *options)), strict=True):
        y, x, h, w = map(int, box)
        for channel in range(3):
            part = Image.fromarray(image[..., channel].astype(np.float32)).crop((x, y, x + w, y + h))
            wanted = part.resize((size, size), Image.Resampling.BILINEAR)
            np.testing.assert_allclose(picture[..., channel], wanted, atol=1e-3)


def test_crops_are_whole_pixels_of_the_right_area_and_ratio_anywhere():
    y, x, h, w = np.asarray(boxes(keys(4000), 84, 84, (0.08, 1.0), (3 / 4, 4 / 3))).T
    for value in (y, x, h, w):
        np.testing.assert_array_equal(value, np.round(value))
    assert ((y >= 0) & (x >= 0) & (y + h <= 84) & (x + w <= 84)).all()
    half = 0.5 / np.minimum(h, w)  # sides are rounded
    assert (w / h <= 4 / 3 * (1 + 3 * half)).all()
    assert (w / h >= 3 / 4 * (1 - 3 * half)).all()
    assert (h * w >= 0.08 * 84**2 * (1 - 3 * half)).all()
    assert abs(np.corrcoef(np.log(w / h), np.log(h * w))[0, 1]) < 0.05
    assert abs(np.log(w / h).mean()) < 0.01  # the ratio is uniform in its logarithm
    room = h < 70
    place = y[room] / (84 - h[room])
    assert place.min() == 0
    assert place.max() == 1
    assert abs(place.mean() - 0.5) < 0.02


def test_a_part_that_never_fits_is_the_middle_of_an_allowed_ratio():
    """torchvision's way out; here every draw would be larger than the image."""
    fallback = boxes(keys(3), 40, 100, (5.0, 6.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(fallback, [[0, (100 - 53) // 2, 40, 53]] * 3)  # 40 * 4 / 3 = 53.3
    fallback = boxes(keys(3), 100, 40, (5.0, 6.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(fallback, [[(100 - 53) // 2, 0, 53, 40]] * 3)


def test_a_square_image_that_no_draw_fits_is_taken_whole():
    np.testing.assert_array_equal(boxes(keys(1), 30, 30, (5.0, 6.0), (3 / 4, 4 / 3)), [[0, 0, 30, 30]])


def test_an_image_depends_on_its_own_key_alone():
    """So it makes no difference how a batch is spread over devices."""
    images = pictures(4, 30, 30, 1)

    @jax.jit
    def view(keys, images):
        images = augment.random_resized_crop(keys, images, 28)
        return augment.random_flip(keys, augment.random_shift(keys, images, 1))

    np.testing.assert_array_equal(view(keys(4)[::-1], images[::-1]), view(keys(4), images)[::-1])


def test_all_rotations_are_numpys():
    images = np.random.default_rng(0).normal(size=(3, 5, 5, 2))
    found = augment.all_rotations(jnp.asarray(images))
    np.testing.assert_allclose(found, np.concatenate([np.rot90(images, k, (1, 2)) for k in range(4)]), rtol=1e-6)


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ConfigError, match="a crop of 9 pixels cannot be taken from images of 8 x 12"):
        augment.center_crop(jnp.zeros((2, 8, 12, 1)), 9)
