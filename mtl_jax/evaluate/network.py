"""Loads the network of a run: its pre-trained backbone, the network that is tested, or one from a weight file."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.errors import FlaxError

from mtl_jax import config as settings
from mtl_jax.config import build, run_data
from mtl_jax.config.rules import is_weights
from mtl_jax.embed import feature_width
from mtl_jax.errors import CheckpointError, ConfigError, first_line
from mtl_jax.evaluation import Model
from mtl_jax.launch import hosts
from mtl_jax.meta import Frozen
from mtl_jax.reference_weights import ReferenceWeights, kept_networks, load_reference_weights
from mtl_jax.reference_weights.mobile import MOBILE
from mtl_jax.types import Params
from mtl_jax.words import nearest
from mtl_jax.workdir import Workdir, named_arrays
from mtl_jax.workdir.checkpoint import Checkpoints, Restored

Config = Mapping[str, Any]
_IN_TRAINING_ONLY = ("dropout", "dropblock", "norm_momentum", "norm_unbiased")  # of the `backbone` group
_logger = logging.getLogger(__name__)


def pretrained(config: Config, place: Workdir) -> tuple[Params, Params]:
    """The backbone that meta-training starts from, (params, batch_stats): the run's own, or that of `pretrain.init`."""
    init = kept_networks.init_path(config["pretrain"]["init"])
    if init and is_weights(init):
        return backbone(config, init)
    source = Workdir(init) if init else place
    found = Checkpoints(source.checkpoints("pretrain")).selected(config["pretrain"]["select"])
    return backbone_of(found.items)


def check_init(config: Config) -> None:
    """Checks that what training is to start from exists. Raises ConfigError."""
    init = config["pretrain"]["init"]
    if init and not Path(kept_networks.init_path(init)).exists():
        names = kept_networks.packaged_names()
        raise ConfigError(
            f"config.pretrain.init is {init!r}: no such file or folder, and not a bundled network"
            f"{nearest(init, names)}; give a workdir, a weight file, or one of {', '.join(names)}"
        )


def check_start(config: Config, params: Params, batch_stats: Params, image_shape: tuple[int, ...]) -> None:
    """Checks that the backbone of `pretrain.init` fits a config and its stored images [H, W, C].

    Warns where it was trained with images prepared otherwise, or on data of which nothing tells the classes.

    Raises:
      ConfigError: it is of another architecture, or takes images of other channels.
    """
    init = config["pretrain"]["init"]
    try:
        feature_width(build.embedding(config), params, batch_stats, image_shape)
    except FlaxError as error:
        raise ConfigError(
            f"config.pretrain.init is {init!r}, which does not fit config.backbone, or images of {image_shape[-1]} "
            f"channels (config.data.channels): {first_line(error).partition(' (http')[0]}"
        ) from error
    path = kept_networks.init_path(init)
    kept = _kept(config)
    if kept:
        before, shape = kept.settings, kept.image_shape
    elif Workdir(path).config.exists():
        before = settings.to_json(settings.read(Workdir(path).config))
        shape = run_data.image_shape(before, Workdir(path))
    else:
        return
    lines = settings.compare(_seen(before, shape), _seen(settings.to_json(config), image_shape))
    if lines and hosts.is_first():
        _logger.warning(
            "config.pretrain.init is %s, which was trained with other values: %s; its features get worse with these, "
            "so keep the old ones unless you mean to change them", init, "; ".join(lines),
        )  # fmt: skip
    if (other := _other_data(config, kept)) and hosts.is_first():
        _logger.warning("config.pretrain.init was trained on %s, so it may have seen the test classes",
                        other)  # fmt: skip


def trained_on(config: Config) -> str:
    """The data set that the kept network of `pretrain.init` was trained on, where it is another than a config's."""
    return _other_data(config, _kept(config))


def _kept(config: Config) -> kept_networks.Kept | None:
    """The kept network that `pretrain.init` names, if it names one."""
    path = kept_networks.init_path(config["pretrain"]["init"])
    return kept_networks.read(Path(path)) if kept_networks.is_kept(path) else None


def _other_data(config: Config, kept: kept_networks.Kept | None) -> str:
    name = kept.settings["data"]["name"] if kept else ""
    return f"{name} ({Path(config['pretrain']['init']).name})" if name not in ("", config["data"]["name"]) else ""


def _seen(config: Config, image_shape: Sequence[int]) -> dict[str, Any]:
    """What of a config decides what a backbone computes of a stored image."""
    architecture = {key: value for key, value in config["backbone"].items() if key not in _IN_TRAINING_ONLY}
    data = {key: config["data"][key] for key in ("crop", "mean", "std")}
    return {"backbone": architecture, "data": data, "image shape": list(image_shape)}


def backbone_of(items: Mapping[str, Any]) -> tuple[Params, Params]:
    """(params, batch_stats) of a pre-training checkpoint's backbone; the averaged weights where there are any."""
    network = items.get("average") or items
    return network["params"]["backbone"], network.get("batch_stats", {})


def trained(config: Config, place: Workdir, image_shape: tuple[int, ...]) -> tuple[int, Model]:
    """The network that is tested, and the step of its meta-training checkpoint (0 where nothing is meta-learned).

    `image_shape` is [H, W, C], of the stored images.
    """
    embed = build.embedding(config)
    if config["meta"]["learn"] == "none":
        params, batch_stats = pretrained(config, place)
        head = build.fresh_head(config, feature_width(embed, params, batch_stats, image_shape))
        return 0, Model(embed, {"head": head}, Frozen(params, batch_stats))
    found = meta_checkpoint(config, place)
    frozen = Frozen(found.items["params"], found.items.get("batch_stats", {}))
    return found.step, Model(embed, found.items["learned"], frozen)


def meta_checkpoint(config: Config, place: Workdir) -> Restored:
    """The checkpoint of meta-training that is tested."""
    return Checkpoints(place.checkpoints("meta")).selected(config["meta"]["select"])


def backbone(config: Config, path: str) -> tuple[Params, Params]:
    """The backbone of a reference's or a kept network's file, (params, batch_stats), for that of a config.

    Raises:
      CheckpointError: the file cannot be read, or has the weights of another backbone.
      ConfigError: it has no running averages, and the config needs them; or it computes with another activation or
        epsilon.
    """
    if kept_networks.is_kept(path):
        kept = kept_networks.read(Path(path))
        frozen, name = kept.model.frozen, kept.settings["backbone"]["name"]
        weights = ReferenceWeights(name, frozen.params, frozen.batch_stats, None, None)
        embed: Any = kept.model.embed  # an Embed
        _check_same(config, name, embed.module, path)
        return _backbone(config, weights, path, channels=kept.image_shape[-1])
    weights = load_reference_weights(path)
    if weights.backbone in MOBILE:  # others are trained further with options of a preset's
        _check_same(config, weights.backbone, weights.module(), path)
    return _backbone(config, weights, path)


def _check_same(config: Config, name: str, module: nn.Module, path: str) -> None:
    """Checks that the config's backbone computes as the file's network `module` does, if they have the same name."""
    own = build.backbone(config["backbone"]).options
    for key in ("activation", "norm_epsilon"):
        wanted, given = getattr(module.options, key), getattr(own, key)
        if name == config["backbone"]["name"] and given != wanted:
            raise ConfigError(
                f"{path}: a network with {key} {wanted!r}, but config.backbone.{key} is {given!r}; "
                f"give --config.backbone.{key}={wanted}"
            )


def model(config: Config, path: str) -> Model:
    """The meta-trained network of a weight file; the config's `meta.batch_norm` says how it runs.

    Raises:
      CheckpointError: as `backbone`; or the file has no head, or one for another way than `meta.way`.
    """
    weights = load_reference_weights(path)
    params, batch_stats = _backbone(config, weights, path)
    if weights.head is None:
        raise CheckpointError(f"{path}: a pre-training file, without a head; train with --config.pretrain.init={path}")
    way, wanted = weights.head["kernel"].shape[1], config["meta"]["way"]
    if way != wanted:
        advice = (
            "" if weights.ss else f"; or, if they are its training classes, train with --config.pretrain.init={path}"
        )
        raise CheckpointError(
            f"{path}: its head is for {way} classes; give --config.meta.way={way}, not {wanted}{advice}"
        )
    groups = {"head": weights.head, **({"ss": weights.ss} if weights.ss else {})}
    return Model(build.embedding(config), jax.tree.map(jnp.asarray, _single(groups)), Frozen(params, batch_stats))


def _backbone(config: Config, weights: ReferenceWeights, path: str, channels: int = 3) -> tuple[Params, Params]:
    if weights.backbone != config["backbone"]["name"]:
        raise CheckpointError(
            f"{path}: the weights of a {weights.backbone}, but config.backbone.name is {config['backbone']['name']!r}"
        )
    module = build.backbone(config["backbone"])
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, channels)))
    params = named_arrays.fit(like["params"], _single(weights.params), path)
    if weights.batch_stats is not None:
        return params, named_arrays.fit(like.get("batch_stats", {}), _single(weights.batch_stats), path)
    if config["backbone"]["norm"] == "batch" and config["meta"]["batch_norm"] != "batch":
        raise ConfigError(
            f"{path} has no running averages of batch norm, so config.meta.batch_norm must be 'batch', "
            f"not {config['meta']['batch_norm']!r}"
        )
    return params, jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), like.get("batch_stats", {}))


def _single(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), tree)
