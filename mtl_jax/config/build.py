"""Builds a `Recipe`, or one of the core's objects, from a config for other programs."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from mtl_jax import data, optimizers
from mtl_jax.backbones import create_backbone
from mtl_jax.config import own_backbone
from mtl_jax.config import recipe as recipes
from mtl_jax.config.recipe import Recipe
from mtl_jax.embed import Embed
from mtl_jax.evaluation import Protocol
from mtl_jax.learners import BaseLearner, Inner, has_learned_classes, with_way
from mtl_jax.parallel import on_cpu
from mtl_jax.solved_learners import Logistic, Prototypes, Ridge
from mtl_jax.types import Array, Params

Config = Mapping[str, Any]  # a ConfigDict or one of its groups


def recipe(config: Config) -> Recipe:
    """All that a checked, whole config asks of training: no key is read after this."""
    return Recipe(
        tasks(config),
        None if config["pretrain"]["init"] else pretraining(config),
        None if config["meta"]["learn"] == "none" else meta_training(config),
    )


def pretraining(config: Config, dtype: str = "") -> recipes.PretrainRecipe:
    """The first phase of a whole config, computed in `dtype`, by default `runtime.dtype`."""
    group, dtype = config["pretrain"], dtype or config["runtime"]["dtype"]
    statistics = "batch" if group["batch_norm"] == "batch" else "running"
    options = {name: group[name] for name in recipes.PretrainOptions._fields if name != "batch_statistics"}
    return recipes.PretrainRecipe(
        embed=Embed(backbone(config["backbone"], dtype), statistics, prepare(config["data"])),
        optimizer=optimizer(group, group["lr"]),
        keys=keys(config),
        intervals=intervals(config, group),
        batches=recipes.Batches(group["batch_size"], group["drop_last"], group["shuffle"]),
        augment=augmentation(config["data"], group["augment"]),
        hidden=group["hidden"],
        classifier_init=group["classifier_init"],
        options=recipes.PretrainOptions(group["batch_norm"], **options),
        teacher=teacher(group, dtype) if group["teacher"] else None,
        validation=validation(config, group) if group["val_tasks"] else None,
        limits=limits(config),
    )


def meta_training(config: Config) -> recipes.MetaRecipe:
    """The second phase of a whole config."""
    group, hard = config["meta"], config["hard_tasks"]
    return recipes.MetaRecipe(
        embed=embedding(config),
        inner=base_learner(config),
        optimizer=meta_optimizer(group),
        keys=keys(config),
        intervals=intervals(config, group),
        learned=learned_groups(config),
        tasks=tasks(config),
        tasks_per_step=group["tasks_per_step"],
        chunk=config["runtime"]["chunk"],
        hard_tasks=recipes.HardTasks(hard["round"], hard["extra"]) if hard["enabled"] else None,
        validation=validation(config, group) if group["val_tasks"] else None,
        limits=limits(config),
    )


def keys(config: Config) -> recipes.Keys:
    """The random streams of a run."""
    return recipes.Keys.from_seed(config["seed"])


def intervals(config: Config, group: Config) -> recipes.Intervals:
    """How long a phase's `group` trains, and what happens how often."""
    runtime = config["runtime"]
    return recipes.Intervals(
        group["steps"], runtime["steps_per_dispatch"], runtime["log_every"], runtime["checkpoint_every"],
        group["val_every"], runtime["skip_nonfinite"],
    )  # fmt: skip


def limits(config: Config) -> recipes.Limits:
    """What memory holds at once."""
    runtime = config["runtime"]
    return recipes.Limits(1e9 * config["data"]["device_budget_gb"], runtime["embed_batch"], runtime["task_chunk"])


def tasks(config: Config) -> recipes.TaskSizes:
    """The sizes of training's tasks."""
    return recipes.TaskSizes(*(config["meta"][name] for name in recipes.TaskSizes._fields))


def teacher(group: Config, dtype: str) -> recipes.Teacher:
    """The teacher that the `pretrain` group names."""
    return recipes.Teacher(group["teacher"], group["select"], group["distill_weight"], group["temperature"], dtype)


def dataset(config: Config, progress: Callable[[int, int], None] | None = None, inspect: Any = None) -> data.Dataset:
    """The data set of a config's `data` group, prepared if it has not been before; `inspect` as in `data.load`."""
    keys = (
        "name", "path", "image_size", "resize", "channels", "rotations", "convert", "skip_corrupt", "cache_dir",
        "interpolation", "fractions", "lists", "split_seed", "max_pixels", "allow",
    )  # fmt: skip
    return data.load(**{key: config[key] for key in keys}, progress=progress, inspect=inspect)


def image_shape(config: Config, images: Any) -> tuple[int, ...]:
    """The shape [H, W, C] that the backbone of a config's `data` group sees of stored images [M, H, W, C]."""
    return recipes.image_shape(prepare(config), images.shape[1:])


def backbone(config: Config, dtype: str = "float32", axis_name: str | None = None) -> nn.Module:
    """The module of a config's `backbone` group, computing in `dtype`."""
    if own_backbone.is_own(config["name"]):
        return own_backbone.create(config["name"], _compute_dtype(dtype))
    options = {key: value for key, value in config.items() if key != "name"}
    return create_backbone(config["name"], **options, dtype=_compute_dtype(dtype), axis_name=axis_name)


def _compute_dtype(dtype: str) -> Any:
    # None lets Flax follow the parameters, so that a float64 test stays float64.
    resolved = resolve_dtype(dtype)
    return None if resolved == "float32" else jnp.dtype(resolved)


def resolve_dtype(dtype: str) -> str:
    """What `runtime.dtype` stands for here: 'auto' is bfloat16 on accelerators, float32 on CPUs."""
    if dtype != "auto":
        return dtype
    return "float32" if on_cpu() else "bfloat16"


def prepare(config: Config) -> recipes.Prepare:
    """How images of a config's `data` group are prepared."""
    return recipes.Prepare(config["crop"], tuple(config["mean"]), tuple(config["std"]))


def augmentation(config: Config, group: Config) -> recipes.Augmentation:
    """Pre-training's random view of images: of the `data` group and the group `pretrain.augment`."""
    names = ("shift", "pad", "jitter", "flip", "resized_crop")
    options = {name: group[name] for name in names}
    return recipes.Augmentation(prepare(config), **options, resized_crop_scale=tuple(group["resized_crop_scale"]))


def embedding(config: Config) -> Embed:
    """The backbone of a whole config as meta-training runs it."""
    module = backbone(config["backbone"], config["runtime"]["dtype"])
    return Embed(module, config["meta"]["batch_norm"], prepare(config["data"]))


def base_learner(config: Config) -> BaseLearner:
    """The base-learner of a whole config, for tasks of `meta.way` classes."""
    group, way = config["inner"], config["meta"]["way"]
    name, features = group["base_learner"], group["features"]
    if name == "prototypes":
        return Prototypes(way, group["distance"], features=features)
    if name == "ridge":
        return Ridge(way, group["l2"], features=features)
    if name == "logistic":
        return Logistic(way, 1 / group["l2"], features=features)
    return inner(group, way)


def inner(group: Config, way: int = 0) -> Inner:
    """The inner loop of a config's `inner` group whose base-learner is linear or a cosine head."""
    options = {name: group[name] for name in Inner._fields if name not in ("head", "way")}
    return Inner(**options, head=group["base_learner"], way=way)


def optimizer(group: Config, lr: float) -> Any:
    """An optimiser of the `pretrain` or `meta` group's kind and schedule, from the rate `lr`."""
    rate = optimizers.schedule(
        lr, decay=group["decay"], every=group["decay_every"], factor=group["decay_factor"],
        total=group["steps"], floor=group["decay_floor"], delay=group["decay_delay"],
    )  # fmt: skip
    if group["optimizer"] == "sgd":
        return optimizers.sgd(rate, momentum=group["momentum"], weight_decay=group["weight_decay"])
    return optimizers.adam(rate, weight_decay=group["weight_decay"], eps=group["adam_eps"])


def meta_optimizer(group: Config) -> Any:
    """The optimiser of meta-training: a rate for the head, another for everything else."""
    return optimizers.by_group({"head": optimizer(group, group["head_lr"])}, optimizer(group, group["lr"]))


def learned_groups(config: Config) -> recipes.Learned:
    """What meta-training of a whole config learns."""
    return recipes.Learned(**{name: config["meta"][name] for name in recipes.Learned._fields})


def learned(key: Array, config: Config, params: Params, features: int) -> Params:
    """The groups that meta-training learns, at their start: 'head', and 'ss' or 'params' as the `meta` group says."""
    return learned_groups(config).start(base_learner(config), key, params, features)


def validation(config: Config, group: Config) -> Protocol:
    """The fixed validation tasks of a phase's `group`: meta-training's sizes, unless the group has its own."""
    meta = config["meta"]
    shot, query = group["val_shot"] or meta["shot"], group["val_query"] or meta["query"]
    return Protocol(meta["way"], shot, query, group["val_tasks"], config["evaluate"]["seed"], base_learner(config))


def protocol(config: Config) -> Protocol:
    """The protocol of a whole config's `evaluate` group, with what it leaves unset taken from training's."""
    group, meta = config["evaluate"], config["meta"]
    way, shot = group["way"] or meta["way"], group["shot"] or meta["shot"]
    learner: Any = base_learner(config)
    if group["inner_steps"] is not None:
        learner = learner._replace(steps=group["inner_steps"])
    if group["inner_lr"] is not None:
        learner = learner._replace(lr=group["inner_lr"])
    learner, starts_anew = with_way(learner, way), way != meta["way"] and has_learned_classes(learner)
    return Protocol(
        way, shot, group["query"], group["num_tasks"], group["seed"], learner, group["flips"],
        zero_head=starts_anew, crops=group["crops"], crop_area=group["crop_area"],
    )  # fmt: skip


def fresh_head(config: Config, features: int) -> Params:
    """What the base-learner learns, untrained: always the same for a seed."""
    return base_learner(config).init(keys(config).head, features)
