# %% [markdown]
# # Five letters, three examples of each
#
# The embedded glyphs stand for photographs: letters of Georgian, a script that no network here was trained on. The
# cells run one after the other in a notebook editor, or at once: `python examples/few_shot.py`.

# %% A network, trained for seconds. `FewShotClassifier.from_workdir("runs/mine")` takes one that train.py has trained.
import jax
import numpy as np
import optax

import mtl_jax
from mtl_jax import data

letters = data.load("glyphs").splits
base, unseen = letters["train"], letters["test"]
module = mtl_jax.create_backbone("conv4", width=0.25)
optimizer = optax.adam(1e-2)


def scaled(images):
    """uint8 -> float in -1..1, on the device."""
    return jax.numpy.asarray(images, jax.numpy.float32) / 127.5 - 1


# %% Pre-training in plain optax: the backbone and a linear classifier over the base classes.
key = jax.random.key(0)
variables = module.init(key, scaled(base.images[:1]))
classifier = mtl_jax.init_head(key, 16, len(base.class_names))
trained = {"params": variables["params"], "classifier": classifier}
stats, opt_state = variables["batch_stats"], optimizer.init(trained)


@jax.jit
def train_step(trained, stats, opt_state, images, labels):
    """One step on a batch; batch norm's averages move with it."""

    def loss(trained):
        given = {"params": trained["params"], "batch_stats": stats}
        features, new = module.apply(given, scaled(images), batch_statistics="train", mutable=["batch_stats"])
        logits = features @ trained["classifier"]["kernel"] + trained["classifier"]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new["batch_stats"]

    (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
    updates, opt_state = optimizer.update(gradients, opt_state)
    return optax.apply_updates(trained, updates), stats, opt_state, value


STEPS, rng = 300, np.random.default_rng(0)
for _ in range(STEPS):
    batch = np.sort(rng.choice(len(base.images), 64, replace=False))
    trained, stats, opt_state, value = train_step(trained, stats, opt_state, base.images[batch], base.labels[batch])
print(f"loss after {STEPS} steps: {value:.2f}, {np.log(len(base.class_names)):.2f} by chance")

# %% The classifier takes any function from images to features.
features_of = jax.jit(lambda images: module.apply({"params": trained["params"], "batch_stats": stats}, scaled(images)))
classifier = mtl_jax.FewShotClassifier(embed=lambda images: np.asarray(features_of(images)))

# %% Five unseen letters: three images of each to learn from, all others to be told apart.
chosen = [3, 9, 14, 21, 30]
rows = {unseen.class_names[c]: np.flatnonzero(unseen.labels == c) for c in chosen}
support = np.concatenate([found[:3] for found in rows.values()])
query = np.concatenate([found[3:] for found in rows.values()])
name_of = np.array(unseen.class_names)[unseen.labels]
classifier.fit(unseen.images[support], name_of[support])
accuracy = classifier.score(unseen.images[query], name_of[query])
print(f"{len(query)} images, 5 classes, 3 shots: {100 * accuracy:.0f} % right, 20 % by chance")

# %% Probabilities, calibrated on the fifteen images alone; below a threshold the answer is 'unknown'.
classifier.set_params(unknown_threshold=0.5)
answers = classifier.predict(unseen.images[query])
known = answers != "unknown"
right = (answers == name_of[query])[known].mean()
print(f"unknown: {100 * (~known).mean():.0f} %; of the rest right: {100 * right:.0f} %")

# %% A sixth letter comes later, with five images: nothing is embedded twice, the backbone stays.
sixth = np.flatnonzero(unseen.labels == 5)
classifier.partial_fit(unseen.images[sixth[:5]], name_of[sixth[:5]])
print(len(classifier.classes_), "classes:", ", ".join(classifier.classes_))
