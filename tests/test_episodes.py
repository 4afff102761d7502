"""Sampling of tasks: uniform, without replacement, stateless, from classes of unequal size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax import ClassTable, check_table, hard_tasks, sample_episode
from mtl_jax.episodes import count_distinct, gather, sample_tasks, task_keys
from mtl_jax.errors import ConfigError, DataError


def table(counts):
    starts, column = np.cumsum(counts) - counts, np.arange(max(counts))
    indices = np.where(column < np.array(counts)[:, None], starts[:, None] + column, -1)
    return ClassTable(jnp.asarray(indices, jnp.int32), jnp.asarray(counts, jnp.int32))


COUNTS = [7, 3, 12, 5, 4, 9]
OWNER = np.repeat(np.arange(len(COUNTS)), COUNTS)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.integers(0, 2**31 - 1), st.integers(1, 6), st.integers(1, 2))
def test_a_task_is_distinct_images_of_distinct_classes(seed, way, shot):
    support, query = sample_episode(jax.random.key(seed), table(COUNTS), way=way, shot=shot, query=1)
    assert support.shape == (way, shot)
    assert query.shape == (way, 1)
    rows = np.concatenate([support, query], 1)
    assert rows.min() >= 0
    assert len(set(rows.ravel())) == rows.size  # support and query never share an image
    owners = OWNER[rows]
    assert (owners == owners[:, :1]).all()  # a row is a class
    assert len(set(owners[:, 0])) == way


def test_another_query_count_keeps_the_support_set():
    draws = [sample_episode(jax.random.key(5), table([20] * 6), way=5, shot=2, query=q) for q in (1, 7, 15)]
    for support, query in draws[:2]:
        np.testing.assert_array_equal(support, draws[2][0])
        np.testing.assert_array_equal(query, draws[2][1][:, : query.shape[1]])


def chi_square(counts):
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_classes_and_images_are_uniform():
    """Chi-square at the 0.999 quantile, for classes in first place and for images of a class in first place."""
    draws = 6000
    keys = jax.random.split(jax.random.key(0), draws)
    support, query = jax.jit(lambda k: sample_tasks(k, table(COUNTS), way=2, shot=1, query=1))(keys)
    classes = OWNER[np.asarray(support)[..., 0]]
    for place in (0, 1):
        assert chi_square(np.bincount(classes[:, place], minlength=6)) < 20.5  # 5 degrees of freedom
    pairs = np.bincount(classes[:, 0] * 6 + classes[:, 1], minlength=36).reshape(6, 6)
    assert (np.diag(pairs) == 0).all()
    assert chi_square(pairs[~np.eye(6, dtype=bool)]) < 58.3  # 29 degrees of freedom
    for images in (support, query):
        chosen = np.asarray(images)[..., 0][classes == 2] - 10  # class 2 has images 10..21
        assert chi_square(np.bincount(chosen, minlength=12)) < 31.3  # 11 degrees of freedom


def test_tasks_depend_on_step_and_number_alone():
    key = jax.random.key(3)
    whole = sample_tasks(task_keys(key, 7, jnp.arange(4)), table(COUNTS), way=3, shot=1, query=2)
    half = sample_tasks(task_keys(key, 7, jnp.arange(2, 4)), table(COUNTS), way=3, shot=1, query=2)
    for a, b in zip(whole, half, strict=True):
        np.testing.assert_array_equal(a[2:], b)
    other = sample_tasks(task_keys(key, 8, jnp.arange(4)), table(COUNTS), way=3, shot=1, query=2)
    assert not np.array_equal(whole[0], other[0])


def test_numpy_tables_do_as_well():
    ours = table(COUNTS)
    numpy = ClassTable(*map(np.asarray, ours))
    draws = [sample_episode(jax.random.key(1), t, way=3, shot=1, query=2) for t in (ours, numpy)]
    jax.tree.map(np.testing.assert_array_equal, *draws)


def test_gather_is_class_major():
    images = jnp.arange(40).reshape(40, 1)
    support, query = sample_episode(jax.random.key(0), table(COUNTS), way=3, shot=2, query=1)
    episode = gather(images, support, query)
    np.testing.assert_array_equal(episode.support[:, 0], support.ravel())
    np.testing.assert_array_equal(episode.support_labels, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(episode.query_labels, [0, 1, 2])
    batch = gather(images, support[None], query[None])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), batch, episode)


def test_size_errors_name_split_and_class():
    names = [f"class{i}" for i in range(6)]
    check_table(table(COUNTS), names, way=6, shot=1, query=2)
    with pytest.raises(DataError, match=r"val has 6 classes.*7-way"):
        check_table(table(COUNTS), names, way=7, shot=1, query=1, split="val")
    with pytest.raises(DataError, match=r"val has 2 classes with fewer than 1 \+ 4 images.*class1 \(3\), class4 \(4\)"):
        check_table(table(COUNTS), names, way=5, shot=1, query=4, split="val")


def test_distinct_tasks_are_counted_whatever_the_order_of_classes_and_images():
    support = np.array([[[0, 1], [5, 6]], [[6, 5], [1, 0]], [[0, 2], [5, 6]], [[0, 1], [5, 6]]])
    query = np.array([[[2, 3], [7, 8]], [[8, 7], [3, 2]], [[1, 3], [7, 8]], [[2, 4], [7, 8]]])
    assert count_distinct(support[:2], query[:2]) == 1  # the same classes, images and roles in another order
    assert count_distinct(support, query) == 3  # another support image, another query image
    assert count_distinct(query, support) == 3


def test_small_classes_give_few_distinct_tasks():
    small = table([3, 3])  # 2-way 1-shot with 2 queries: an image of each class is support, 9 tasks in all
    keys = jax.random.split(jax.random.key(0), 200)
    assert count_distinct(*map(np.asarray, sample_tasks(keys, small, way=2, shot=1, query=2))) == 9


@pytest.mark.parametrize("sizes", [{"way": 7, "shot": 1, "query": 1}, {"way": 3, "shot": 1, "query": 3}])
@pytest.mark.parametrize("of", [jnp.asarray, np.asarray])
def test_a_table_that_cannot_give_a_task_is_refused(sizes, of):
    """Missing images were the last one of all, missing classes were left out."""
    small = ClassTable(*map(of, table(COUNTS)))
    for draw in (sample_episode, jax.jit(lambda key, t, **_: sample_episode(key, small, **sizes))):
        with pytest.raises(DataError, match=r"the table has (6 classes.*7-way|1 class with fewer.*class 1 \(3\))"):
            draw(jax.random.key(0), small, **sizes)
    with pytest.raises(DataError, match="the table has"):
        hard_tasks.sample_tasks(jax.random.split(jax.random.key(0)), small, jnp.zeros(6, int), **sizes)


@pytest.mark.parametrize("sizes", [{"way": 7, "shot": 1, "query": 1}, {"way": 3, "shot": 9, "query": 4}])
def test_under_jit_the_shape_of_a_table_is_looked_at(sizes):
    with pytest.raises(DataError, match=r"the table has 6 classes"):
        jax.jit(lambda t: sample_episode(jax.random.key(0), t, **sizes))(table(COUNTS))


def test_a_pool_of_other_classes_is_refused():
    with pytest.raises(ConfigError, match=r"pool has shape \(5,\), expected \(6,\)"):
        hard_tasks.sample_tasks(
            jax.random.split(jax.random.key(0)), table(COUNTS), jnp.zeros(5, int), way=2, shot=1, query=1
        )


@pytest.mark.parametrize("position", [-1, 40])
def test_a_position_that_is_none_of_an_image_is_refused(position):
    with pytest.raises(DataError, match=r"positions of images are .*expected 0 to 39"):
        gather(jnp.arange(40), jnp.array([[3], [position]]), jnp.array([[0], [1]]))
