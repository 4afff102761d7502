"""From a config's groups to the core's objects: data set, backbone, embedding, inner loop, optimisers, protocol."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax import augment, data, optimizers, scale_shift
from mtl_jax.backbones import create_backbone
from mtl_jax.base_learner import init_head
from mtl_jax.evaluation import Protocol
from mtl_jax.meta import Embed, Inner
from mtl_jax.parallel import on_cpu
from mtl_jax.types import Array, Params

Config = Mapping[str, Any]  # a ConfigDict or one of its groups

# Streams of random numbers that grow from a config's seed.
BACKBONE, HEAD, ORDER, AUGMENT, TASKS, HARD_TASKS = range(6)


def stream(config: Config, number: int) -> Array:
    """The key of one of the random streams of a run."""
    return jax.random.fold_in(jax.random.key(config["seed"]), number)


def dataset(config: Config, progress: Callable[[int, int], None] | None = None, inspect: Any = None) -> data.Dataset:
    """The data set of a config's `data` group, prepared if it has not been before; `inspect` as in `data.load`."""
    keys = ("name", "path", "image_size", "resize", "channels", "rotations", "convert", "skip_corrupt", "cache_dir")
    keys += ("fractions", "lists", "split_seed", "allow")
    return data.load(**{key: config[key] for key in keys}, progress=progress, inspect=inspect)


def is_on_device(config: Config, split: data.Split) -> bool:
    """Whether a split lives on the device whole: where it fits `data.device_budget_gb`."""
    return split.images.nbytes <= 1e9 * config["data"]["device_budget_gb"]


def image_shape(config: Config, images: Any) -> tuple[int, ...]:
    """The shape [H, W, C] that the backbone sees of stored images [M, H, W, C]."""
    side = config["crop"]
    return (side, side, images.shape[-1]) if side else tuple(images.shape[1:])


def backbone(config: Config, dtype: str = "float32", axis_name: str | None = None) -> nn.Module:
    """The module of a config's `backbone` group, computing in `dtype`."""
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


class Prepare(NamedTuple):
    """What is done to uint8 images before the backbone, without augmentation: centre crop, normalisation.

    A value, not a function made anew: what is compiled for one is compiled for all that are equal.
    """

    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Array) -> Array:
        """uint8 [..., H, W, C] -> float32 [..., crop, crop, C]."""
        return augment.normalize(augment.center_crop(images, self.crop), mean=self.mean, std=self.std)


def prepare(config: Config) -> Prepare:
    """How images of a config's `data` group are prepared."""
    return Prepare(config["crop"], tuple(config["mean"]), tuple(config["std"]))


def augmentation(config: Config, group: Config) -> Callable[[Array, Array], Array]:
    """Pre-training's view of uint8 images: (keys [B], images) -> normalised floats.

    In the PyTorch reference's order: random resized crop, (shift, jitter,) centre crop, flip.
    """

    def view(keys: Array, images: Array) -> Array:
        crop_key, shift_key, flip_key = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
        if group["resized_crop"]:
            scale = tuple(group["resized_crop_scale"])
            images = augment.random_resized_crop(crop_key, images, group["resized_crop"], scale=scale)
        images = augment.random_shift(shift_key, images, group["shift"], group["pad"])
        # The keys 0 to 2 are split off above; 3 is that of mixup.
        images = augment.color_jitter(jax.vmap(jax.random.fold_in, (0, None))(keys, 4), images, group["jitter"])
        images = augment.center_crop(images, config["crop"])
        if group["flip"]:
            images = augment.random_flip(flip_key, images)
        return augment.normalize(images, mean=tuple(config["mean"]), std=tuple(config["std"]))

    return view


def embedding(config: Config) -> Embed:
    """The backbone of a whole config as meta-training runs it."""
    module = backbone(config["backbone"], config["runtime"]["dtype"])
    return Embed(module, config["meta"]["batch_norm"], prepare(config["data"]))


def inner(config: Config) -> Inner:
    """The inner loop of a config's `inner` group."""
    return Inner(**{name: config[name] for name in Inner._fields})


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


def learned(key: Array, config: Config, params: Params, features: int) -> Params:
    """The groups that meta-training learns, at their start: 'head', and 'ss' or 'params' as the `meta` group says."""
    group = config["meta"]
    groups: Params = {"head": init_head(key, features, group["way"], init=config["inner"]["head_init"])}
    blocks = None if group["blocks"] == "all" else [scale_shift.last_block(params)]
    if group["learn"] == "ss":
        groups["ss"] = scale_shift.init(params, scale=group["scale"], shift=group["shift"], blocks=blocks)
    if group["learn"] == "weights":
        groups["params"] = {name: params[name] for name in blocks or params}
    elif group["norm_affine"]:
        groups["params"] = norm_affine({name: params[name] for name in blocks or params})
    return groups


def norm_affine(params: Params) -> Params:
    """The part of a backbone's parameters that is batch norm's scales and offsets."""
    part = {}
    for name, inner_tree in params.items():
        if not isinstance(inner_tree, Mapping) or "kernel" in inner_tree:
            continue
        is_norm = not any(isinstance(leaf, Mapping) for leaf in inner_tree.values())
        found = inner_tree if is_norm else norm_affine(inner_tree)
        if found:
            part[name] = found
    return part


def validation(config: Config, group: Config) -> Protocol:
    """The fixed validation tasks of a phase's `group`: meta-training's sizes, unless the group has its own."""
    meta = config["meta"]
    shot, query = group["val_shot"] or meta["shot"], group["val_query"] or meta["query"]
    return Protocol(meta["way"], shot, query, group["val_tasks"], config["evaluate"]["seed"], inner(config["inner"]))


def protocol(config: Config) -> Protocol:
    """The protocol of a whole config's `evaluate` group, with what it leaves unset taken from training's."""
    group, meta = config["evaluate"], config["meta"]
    way, shot = group["way"] or meta["way"], group["shot"] or meta["shot"]
    loop = inner(config["inner"])
    if group["inner_steps"] is not None:
        loop = loop._replace(steps=group["inner_steps"])
    if group["inner_lr"] is not None:
        loop = loop._replace(lr=group["inner_lr"])
    return Protocol(
        way, shot, group["query"], group["num_tasks"], group["seed"], loop, group["flips"],
        zero_head=way != meta["way"], crops=group["crops"], crop_area=group["crop_area"],
    )  # fmt: skip


def fresh_head(config: Config, features: int) -> Params:
    """The untrained head: always the same one for a seed."""
    return init_head(stream(config, HEAD), features, config["meta"]["way"], init=config["inner"]["head_init"])
