"""Types that several modules share, and the letters that stand for shapes.

T tasks, N way, K shot, Q query images per class, S = N K support images, B batch, H W C image, F features.
"""

from typing import Any, NamedTuple, TypedDict

import jax

Array = jax.Array
Params = Any  # a tree of nested dicts with arrays as leaves


class Head(TypedDict):
    """The base-learner θ, a linear layer.

    kernel: [F, N].
    bias: [N].
    """

    kernel: Array
    bias: Array


class ClassTable(NamedTuple):
    """Which images of a split belong to which class.

    indices: int32 [C, M], row c has the positions of the images of class c, padded with -1.
    counts: int32 [C], the number of images of each class.
    """

    indices: Array
    counts: Array


class Episode(NamedTuple):
    """One task, or a batch of tasks when every array has a leading axis T.

    support: [S, H, W, C] images, class-major (or [S, F] features).
    support_labels: int32 [S], values 0..N-1.
    query: [N Q, H, W, C] images, class-major (or features).
    query_labels: int32 [N Q].
    """

    support: Array
    support_labels: Array
    query: Array
    query_labels: Array
