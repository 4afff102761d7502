# %% [markdown]
# # Compare two runs
#
# A network trained on photographs, as it came and after meta-training on the letters that come with the package, tested
# on the same tasks. What counts is the paired difference: its interval is much narrower than those of the two
# accuracies. Two minutes on two CPU cores.

# %% Two configs that differ in one key: with and without meta-learned scale and shift
from mtl_jax.configs import glyphs

from mtl_jax import frozen_episodes, metrics
from mtl_jax.config import build
from mtl_jax.evaluate import accuracies, network
from mtl_jax.train import train
from mtl_jax.workdir import Workdir


def small_config(learn):
    """From a network that has only seen photographs, in a few steps. `make demo` trains one on letters."""
    config = glyphs.get_config("1shot")
    config.pretrain.init = "fc100-conv4"  # comes with the package
    config.data.channels, config.data.mean, config.data.std = 3, (0.5,) * 3, (0.5,) * 3
    config.meta.learn, config.meta.steps, config.meta.val_every, config.meta.val_tasks = learn, 60, 20, 200
    return config


# %% Train. A run that was interrupted resumes when this cell runs again.
configs = {"as it came": small_config("none"), "MTL": small_config("ss")}
for name, config in configs.items():
    train(config, f"runs/{name}")

# %% Test both on the same 2,000 tasks of unseen scripts
dataset = build.dataset(configs["MTL"].data)
split = dataset.split("test")
protocol = build.protocol(configs["MTL"])._replace(num_tasks=2000)
tasks = frozen_episodes.choose_tasks(dataset, split, protocol, None)
values = {}
for name, config in configs.items():
    _, model = network.trained(config, Workdir(f"runs/{name}"), split.images.shape[1:])
    values[name] = accuracies(config, model, split, protocol, tasks=tasks)
    interval = metrics.mean_interval(values[name])
    print(f"{name}: {100 * interval.mean:.1f} ± {100 * interval.ci95:.1f} %, {100 / protocol.way:.0f} % by guessing")

# %% The paired difference, task by task
difference = metrics.paired_difference(values["MTL"], values["as it came"])
print(f"MTL - as it came: {100 * difference.mean:+.2f} ± {100 * difference.ci95:.2f} points")

# %% [markdown]
# `python -m mtl_jax.report "runs/as it came" runs/MTL` writes the same comparison as a page: wins and losses,
# where they differ most, both protocols.
