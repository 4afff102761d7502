"""Self-supervision by rotations in pre-training: its views, what its head sees, against NumPy in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_pretrain import IMAGES, LABELS, Small

from mtl_jax import augment, optimizers, pretrain

KINDS = [(views, head) for views in pretrain.ROTATION_VIEWS for head in pretrain.ROTATION_HEADS]
WEIGHT = 0.5


def start(head):
    """A network of two features and three classes, whose rotations are told from `head`; call in float64."""
    state = pretrain.init_state(
        jax.random.key(0), Small(), pretrain.Classifier(3), (4, 4, 1), optimizers.sgd(0.1), rotation=True,
        rotation_head=head,
    )  # fmt: skip
    return jax.tree.map(lambda leaf: np.asarray(leaf, float), (state.params, state.batch_stats))


def loss_of(views, head, images=IMAGES):
    """(params, batch_stats) -> the loss of the batch."""
    options = {"rotation": WEIGHT, "rotation_views": views, "rotation_head": head}
    take = functools.partial(pretrain.classification_loss, backbone=Small(), classifier=pretrain.Classifier(3))
    return jax.jit(lambda params, stats: take(params, stats, images, LABELS, jax.random.key(0), **options)[0])


def numpys(params, views, head):
    """The same loss by NumPy."""
    turns = np.repeat(np.arange(4), 6) if views == "all" else np.arange(6) % 4
    places = np.tile(np.arange(6), 4) if views == "all" else np.arange(6)
    images = np.stack([np.rot90(IMAGES[place], turn) for place, turn in zip(places, turns, strict=True)])
    x = images.reshape(len(images), -1) @ params["backbone"]["dense"]["kernel"] + params["backbone"]["dense"]["bias"]
    norm = params["backbone"]["norm"]
    x = norm["scale"] * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + norm["bias"]
    logits = x @ params["classifier"]["output"]["kernel"] + params["classifier"]["output"]["bias"]
    seen = logits if head == "logits" else x
    angles = seen @ params["rotation"]["output"]["kernel"] + params["rotation"]["output"]["bias"]
    return _cross_entropy(logits, LABELS[places]) + WEIGHT * _cross_entropy(angles, turns)


def _cross_entropy(logits, labels):
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(labels)), labels]).mean()


@pytest.mark.parametrize(("views", "head"), KINDS)
def test_every_form_of_the_loss_is_numpys(float64, views, head):
    params, stats = start(head)
    np.testing.assert_allclose(loss_of(views, head)(params, stats), numpys(params, views, head), rtol=1e-12)


@pytest.mark.parametrize(("views", "head"), KINDS)
def test_its_gradient_is_that_of_finite_differences(float64, views, head):
    params, stats = start(head)
    gradient = jax.grad(loss_of(views, head))(params, stats)
    rng, step = np.random.default_rng(1), 1e-6
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), params)
    ends = [
        numpys(jax.tree.map(lambda p, d, s=sign: p + s * step * d, params, direction), views, head) for sign in (1, -1)
    ]
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-6)


def test_twice_skds_mean_of_binary_losses_has_half_the_gradient_where_biases_know_the_share():
    """F.binary_cross_entropy_with_logits takes the mean over images and outputs, so the sum around it changes nothing.

    Logits of -log 3 say that each angle has the share 1/4.
    """
    logits, target = jnp.full((1, 4), -np.log(3.0)), jnp.eye(4)[:1]

    def binary(z):
        return 2 * -(target * jax.nn.log_sigmoid(z) + (1 - target) * jax.nn.log_sigmoid(-z)).mean()

    softmax = jax.grad(lambda z: -(target * jax.nn.log_softmax(z)).sum())(logits)
    np.testing.assert_allclose(jax.grad(binary)(logits), 0.5 * softmax, atol=1e-6)


def test_images_turn_by_their_own_angle():
    images, turns = np.random.default_rng(0).normal(size=(5, 3, 3, 2)), np.array([3, 0, 1, 2, 1])
    found = augment.turned(jnp.asarray(images), jnp.asarray(turns))
    wanted = [np.rot90(image, turn) for image, turn in zip(images, turns, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
