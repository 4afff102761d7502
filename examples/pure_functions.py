# %% [markdown]
# # The pure functions
#
# Meta-train a network in plain JAX and optax, without a config or a run on disk. A minute on two CPU cores.

# %% A small network, and letters of many scripts
import functools

import jax
import jax.numpy as jnp
import optax

import mtl_jax
from mtl_jax import data

train, test = (data.load("glyphs").splits[name] for name in ("train", "test"))  # uint8 images [M, H, W, C]
module = mtl_jax.create_backbone("conv4", width=0.25)
variables = jax.jit(module.init)(jax.random.key(0), train.images[:1] / 255)
embed = mtl_jax.Embed(module, "batch", prepare=lambda images: images / 255 - 0.5)

# %% What is learned is a tree. Here it is every weight. MTL learns Φ instead: a scale and a shift for each convolution.
learned = {"params": variables["params"], "head": {"scale": jnp.ones(())}}
ss = mtl_jax.init_scale_shift(variables["params"])  # {"ss": ss} in `learned` is all that MTL needs
count, of = mtl_jax.count_scale_shift(ss, variables["params"])
print(f"{count:,} scales and shifts for a network of {of:,} numbers")


# %% The base-learner is any function of support features, labels and query features: here nearest class means
def prototypes(learned, support, labels, query):
    """[S, F], int [S], [Q, F] -> logits [Q, 5]."""
    targets = jax.nn.one_hot(labels, 5)
    means = targets.T @ support / targets.sum(0)[:, None]
    return -learned["scale"] * ((query[:, None] - means) ** 2).sum(-1)


# %% A task is drawn by its key. One meta-training step is one function, on eight tasks
optimizer = optax.adam(3e-3)
state = mtl_jax.init_state(learned, variables["batch_stats"], optimizer)


@jax.jit
def step(state, images, table, key):
    """One step; also the mean accuracy of its tasks."""
    sample = functools.partial(mtl_jax.sample_episode, table=table, way=5, shot=5, query=5)
    tasks = jax.vmap(lambda key: sample(key))(jax.random.split(key, 8))
    episodes = mtl_jax.gather(images, *tasks)
    return mtl_jax.train_step(state, variables["params"], episodes, embed=embed, inner=prototypes, optimizer=optimizer)


images, table = jnp.asarray(train.images), train.table()
for number in range(100):
    state, scalars = step(state, images, table, jax.random.key(number))
    if number % 20 == 0:
        print(f"step {number}: accuracy {100 * scalars['accuracy'].mean():.0f} %, 20 % by guessing")

# %% Test on scripts that it has not seen, before and after, on the same 200 tasks
protocol = mtl_jax.Protocol(way=5, shot=5, query=10, num_tasks=200, seed=0, inner=prototypes)
frozen = mtl_jax.Frozen(variables["params"], variables["batch_stats"])
accuracies = {
    name: mtl_jax.evaluate_tasks(mtl_jax.Model(embed, groups, frozen), test.images, test.table(), protocol)
    for name, groups in (("before", learned), ("after", state.learned))
}
for name, values in accuracies.items():
    print(f"{name}: {100 * values.mean():.1f} %")
difference = mtl_jax.paired_difference(accuracies["after"], accuracies["before"])
print(f"difference: {100 * difference.mean:+.1f} ± {100 * difference.ci95:.1f} points")
