"""Loads the network of a run: its pre-trained backbone, the network that is tested, or one from a weight file."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.config import build
from mtl_jax.config.rules import is_weights
from mtl_jax.errors import CheckpointError, ConfigError
from mtl_jax.evaluation import Model
from mtl_jax.meta import Frozen
from mtl_jax.reference_weights import ReferenceWeights, kept_networks, load_reference_weights
from mtl_jax.types import Params
from mtl_jax.workdir import Workdir, named_arrays
from mtl_jax.workdir.checkpoint import Checkpoints, Restored

Config = Mapping[str, Any]


def pretrained(config: Config, place: Workdir) -> tuple[Params, Params]:
    """The backbone that meta-training starts from, (params, batch_stats): the run's own, or that of `pretrain.init`."""
    init = os.path.expanduser(config["pretrain"]["init"])
    if init and is_weights(init):
        return backbone(config, init)
    source = Workdir(init) if init else place
    found = Checkpoints(source.checkpoints("pretrain")).selected(config["pretrain"]["select"])
    return backbone_of(found.items)


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
        head = build.fresh_head(config, embed.width(params, batch_stats, image_shape))
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
      ConfigError: it has no running averages, and the config needs them.
    """
    if kept_networks.is_kept(path):
        kept = kept_networks.read(Path(path))
        frozen, name = kept.model.frozen, kept.settings["backbone"]["name"]
        weights = ReferenceWeights(name, frozen.params, frozen.batch_stats, None, None)
        return _backbone(config, weights, path, channels=kept.image_shape[-1])
    return _backbone(config, load_reference_weights(path), path)


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
