"""The prefetching thread: what it gives, how it ends, and that it keeps ahead."""

import threading
import time
from typing import NamedTuple

import numpy as np
import pytest

from mtl_jax.data.prefetch import Prefetch, gather


class Pair(NamedTuple):
    support: np.ndarray
    query: np.ndarray


@pytest.fixture
def images(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
    np.save(tmp_path / "images.npy", rows)
    return np.load(tmp_path / "images.npy", mmap_mode="r")


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def batches(count, rng_seed=1):
    rng = np.random.default_rng(rng_seed)
    return [rng.integers(0, 50, (3, 5)) for _ in range(count)]


def test_gathers_in_order(images):
    wanted = batches(20)
    with Prefetch(images, wanted) as found:
        for expected, (indices, gathered) in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(indices, expected)
            np.testing.assert_array_equal(gathered, images[expected])
            assert type(gathered) is np.ndarray and gathered.flags.writeable


def test_trees_of_indices(images):
    tree = Pair(np.array([1, 2]), {"a": [np.array([[3]])]})
    found = gather(images, tree)
    assert isinstance(found, Pair) and found.query["a"][0].shape == (1, 1, 4, 4, 3)
    np.testing.assert_array_equal(found.support, images[1:3])


def test_keeps_ahead_but_not_without_bound(images):
    drawn = []

    def counted():
        for indices in batches(10):
            drawn.append(indices)
            yield indices

    with Prefetch(images, counted(), ahead=3) as found:
        next(found)
        deadline = time.monotonic() + 10
        while len(drawn) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert len(drawn) == 5  # one taken, three waiting, one in work
        assert len(list(found)) == 9


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_errors_come_to_the_consumer_after_what_was_good(images, error):
    def fails():
        yield from batches(2)
        raise error

    with Prefetch(images, fails(), ahead=1) as found:
        assert len([next(found), next(found)]) == 2
        with pytest.raises(type(error)):
            next(found)
        with pytest.raises(StopIteration):
            next(found)


def test_index_out_of_range_is_an_error(images):
    with Prefetch(images, [np.array([50])]) as found, pytest.raises(IndexError):
        next(found)


def test_close_ends_a_thread_that_waits_and_its_generator(images):
    ended = []

    def endless():
        try:
            while True:
                yield np.array([0])
        finally:
            ended.append(True)

    found = Prefetch(images, endless())
    next(found)
    found.close()
    found.close()
    assert ended == [True]
    with pytest.raises(StopIteration):
        next(found)


def test_ahead_must_be_positive(images):
    with pytest.raises(ValueError, match="ahead: 0"):
        Prefetch(images, [], ahead=0)
