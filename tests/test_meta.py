"""The meta step: loss of a task, vmap over tasks, orders, BN modes, groups that are learned, the guard against NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import create_backbone, init_scale_shift, meta, optimizers
from mtl_jax.base_learner import adapt_head, logits
from mtl_jax.errors import ConfigError
from mtl_jax.metrics import cross_entropy
from mtl_jax.types import Episode

WAY, SHOT, QUERY, TASKS = 2, 1, 2, 2


@pytest.fixture(scope="module")
def setup():
    """A tiny backbone with averages of its own, SS off the identity, a head, and two tasks, all in float64."""
    with jax.enable_x64(True):
        module = create_backbone("conv4", width=0.06, norm_unbiased=True)
        images = jax.random.normal(jax.random.key(0), (TASKS, WAY * (SHOT + QUERY), 28, 28, 1), float)
        variables = jax.tree.map(lambda leaf: leaf.astype(float), module.init(jax.random.key(1), images[0]))
        stats = jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])
        ss = jax.tree.map(
            lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape, float),
            init_scale_shift(variables["params"]),
        )
        head = {"kernel": jax.random.normal(jax.random.key(3), (4, WAY), float), "bias": jnp.zeros(WAY)}
        labels = jnp.repeat(jnp.arange(WAY), SHOT), jnp.repeat(jnp.arange(WAY), QUERY)
        cut = WAY * SHOT
        episodes = Episode(
            images[:, :cut], jnp.tile(labels[0], (TASKS, 1)), images[:, cut:], jnp.tile(labels[1], (TASKS, 1))
        )
        return module, {"head": head, "ss": ss}, meta.Frozen(variables["params"], stats), episodes


def first(episodes):
    return jax.tree.map(lambda leaf: leaf[0], episodes)


def close(a, b, tolerance=1e-9):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("mode", ["running", "batch", "train"])
@pytest.mark.parametrize("first_order", [True, False])
def test_episode_loss_is_what_the_paper_writes(setup, mode, first_order, float64):
    """Against embed, adapt, cross-entropy written one after the other; gradients too. The query is embedded first."""
    module, learned, frozen, episodes = setup
    episode, inner = first(episodes), meta.Inner(3, 0.2, first_order)

    def plain(learned):
        params = meta.backbone_params(learned, frozen)

        def embed(stats, images):
            variables = {"params": params, "batch_stats": stats}
            z, new = module.apply(variables, images, batch_statistics=mode, mutable=["batch_stats"])
            return z, new["batch_stats"]

        query, stats = embed(frozen.batch_stats, episode.query)
        support, stats = embed(stats, episode.support)
        if first_order:
            support = jax.lax.stop_gradient(support)
        head = adapt_head(learned["head"], support, episode.support_labels, steps=3, lr=0.2, first_order=first_order)
        return cross_entropy(logits(head, query), episode.query_labels).mean(), stats

    def ours(learned):
        loss, result = meta.episode_loss(learned, frozen, episode, embed=meta.Embed(module, mode), inner=inner)
        return loss, result.batch_stats

    wanted, found = (jax.jit(jax.value_and_grad(f, has_aux=True))(learned) for f in (plain, ours))
    close(wanted, found)


def test_vmap_is_the_loop(setup, float64):
    module, learned, frozen, episodes = setup
    options = {"embed": meta.Embed(module, "train"), "inner": meta.Inner(2, 0.1, False)}
    loss, result = jax.jit(lambda: meta.batch_loss(learned, frozen, episodes, **options))()
    one = jax.jit(lambda episode: meta.episode_loss(learned, frozen, episode, **options))
    parts = [one(jax.tree.map(lambda leaf, t=t: leaf[t], episodes)) for t in range(TASKS)]
    close(loss, sum(part[0] for part in parts) / TASKS)
    for t, part in enumerate(parts):
        close(jax.tree.map(lambda leaf, t=t: leaf[t], result), part[1])


def test_new_averages_are_the_mean_over_tasks(setup, float64):
    module, learned, frozen, episodes = setup
    options = {"embed": meta.Embed(module, "train"), "inner": meta.Inner(1, 0.1)}
    _, (_, result) = jax.jit(lambda: meta.gradients(learned, frozen, episodes, **options))()
    _, each = jax.jit(lambda: meta.batch_loss(learned, frozen, episodes, **options))()
    close(result.batch_stats, jax.tree.map(lambda leaf: leaf.mean(0), each.batch_stats))


def test_second_order_gradient_by_phi_against_finite_differences(setup, float64):
    module, learned, frozen, episodes = setup
    loss = jax.jit(
        lambda ss: meta.episode_loss(
            {**learned, "ss": ss}, frozen, first(episodes),
            embed=meta.Embed(module), inner=meta.Inner(4, 0.3, first_order=False),
        )[0]
    )  # fmt: skip
    ss = learned["ss"]
    gradient = jax.grad(loss)(ss)
    direction = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(leaf.size), leaf.shape, float), ss)
    step = 1e-5
    ends = [loss(jax.tree.map(lambda s, d, sign=sign: s + sign * step * d, ss, direction)) for sign in (1, -1)]
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, direction)))
    np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-6)


def test_per_shot_scale_is_way_times_the_mean(setup, float64):
    module, learned, frozen, episodes = setup
    embed = meta.Embed(module)
    run = lambda inner: meta.episode_loss(learned, frozen, first(episodes), embed=embed, inner=inner)[0]  # noqa: E731
    mean = run(meta.Inner(2, 0.2 * WAY))
    scaled = run(meta.Inner(2, 0.2, loss_scale="per_shot"))
    close(scaled, WAY * QUERY / SHOT * mean)  # the query's sum is divided by K as well


@pytest.mark.parametrize("adapt", ["last_block", "all"])
def test_adapting_the_backbone_moves_what_it_says(setup, adapt, float64):
    module, learned, frozen, episodes = setup
    options = {"embed": meta.Embed(module)}
    head_only = meta.episode_logits(learned, frozen, first(episodes), inner=meta.Inner(1, 0.1), **options)[0]
    moved = meta.episode_logits(learned, frozen, first(episodes), inner=meta.Inner(1, 0.1, adapt=adapt), **options)[0]
    still = meta.episode_logits(learned, frozen, first(episodes), inner=meta.Inner(0, 0.1, adapt=adapt), **options)[0]
    assert not np.allclose(head_only, moved)
    close(still, meta.episode_logits(learned, frozen, first(episodes), inner=meta.Inner(0, 0.1), **options)[0])


def test_a_step_moves_all_that_is_learned_and_nothing_else(setup, float64):
    module, learned, frozen, episodes = setup
    optimizer = optimizers.by_group({"head": optimizers.adam(1e-2)}, optimizers.adam(1e-3))
    state = meta.init_state(learned, frozen.batch_stats, optimizer)
    step = functools.partial(
        meta.train_step, embed=meta.Embed(module), inner=meta.Inner(2, 0.1, False), optimizer=optimizer
    )
    new, metrics = jax.jit(step)(state, frozen.params, episodes)
    assert int(new.step) == 1
    assert bool(metrics["finite"])
    assert metrics["class_accuracy"].shape == (TASKS, WAY)
    close(new.batch_stats, frozen.batch_stats)  # running averages stand still
    # Adam's first step is the rate times the gradient's sign.
    close(jnp.abs(new.learned["head"]["kernel"] - learned["head"]["kernel"]).max(), 1e-2, 1e-6)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), new.learned["ss"], learned["ss"])
    close(max(jax.tree.leaves(moved)), 1e-3, 1e-6)


def test_a_step_that_is_not_finite_changes_nothing_but_the_count(setup, float64):
    module, learned, frozen, episodes = setup
    optimizer = optimizers.adam(1e-2)
    state = meta.init_state(learned, frozen.batch_stats, optimizer)
    bad = episodes._replace(query=episodes.query.at[0, 0, 0, 0, 0].set(jnp.nan))
    step = functools.partial(meta.train_step, embed=meta.Embed(module, "train"), inner=meta.Inner(1, 0.1),
                             optimizer=optimizer)  # fmt: skip
    new, metrics = jax.jit(step)(state, frozen.params, bad)
    assert not bool(metrics["finite"])
    jax.tree.map(np.testing.assert_array_equal, new, state._replace(step=state.step + 1))


def test_overlay_puts_leaves_in_place(setup):
    _, _, frozen, _ = setup
    part = {"block2": {"conv": {"bias": jnp.ones(4)}}}
    merged = meta.overlay(frozen.params, part)
    assert (merged["block2"]["conv"]["bias"] == 1).all()
    assert merged["block2"]["conv"]["kernel"] is frozen.params["block2"]["conv"]["kernel"]
    assert jax.tree.structure(merged) == jax.tree.structure(frozen.params)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"loss_scale": "sum"}, "loss_scale is 'sum', expected one of mean, per_shot"),
        ({"adapt": "last"}, "adapt is 'last', expected one of head, last_block, all"),
        ({"adapt": "all", "features": "l2"}, "features is 'l2', expected 'plain': adapt 'all'"),
        ({"features": "cosine"}, "features is 'cosine'"),
        ({"lr": (0.1, 0.2, 0.3)}, r"lr has shape \(3,\).*2 steps"),
    ],
)
def test_an_inner_loop_of_unknown_values_is_refused(setup, changed, message, float64):
    module, learned, frozen, episodes = setup
    inner = meta.Inner(2, 0.1)._replace(**changed)
    with pytest.raises(ConfigError, match=message):
        meta.episode_loss(learned, frozen, first(episodes), embed=meta.Embed(module), inner=inner)


def test_per_shot_needs_as_many_rows_of_each_class():
    with pytest.raises(ConfigError, match=r"7 support rows are not as many of each of 3 classes"):
        meta.loss_weights(jnp.zeros(7, int), 3, "per_shot")


@pytest.mark.parametrize("adapt", ["head", "last_block"])
def test_rates_of_steps_in_a_task(setup, adapt, float64):
    """Two steps of which the second has the rate 0 are one."""
    module, learned, frozen, episodes = setup
    options = {"embed": meta.Embed(module)}
    run = lambda inner: meta.episode_logits(learned, frozen, first(episodes), inner=inner, **options)[0]  # noqa: E731
    close(run(meta.Inner(2, (0.3, 0.0), adapt=adapt)), run(meta.Inner(1, 0.3, adapt=adapt)))
