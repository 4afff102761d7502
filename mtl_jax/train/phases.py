"""Pre-training and meta-training as phases of the loop: what they start from, their step, their validation."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax import hard_tasks, meta, metrics, parallel, pretrain
from mtl_jax.config import build
from mtl_jax.data import Dataset, Split
from mtl_jax.errors import ConfigError
from mtl_jax.evaluate import network as network
from mtl_jax.evaluation import Model, Protocol, evaluate_tasks
from mtl_jax.meta import Embed, Frozen
from mtl_jax.train import pretrain_dispatch, teacher
from mtl_jax.train.loop import Phase
from mtl_jax.train.meta_dispatch import Watch, dispatcher
from mtl_jax.types import Array, Params

Config = Mapping[str, Any]


class PretrainParts(NamedTuple):
    """What pre-training is made of: `init`, key -> state; `take`, `pretrain.train_step` with its options."""

    module: Any
    init: Callable[[Array], pretrain.PretrainState]
    take: Callable[..., Any]


def pretrain_parts(config: Config, split: Split, axis: str | None = None) -> PretrainParts:
    """The parts for a train split, with batches spread over a mapped axis, if any."""
    group = config["pretrain"]
    module = build.backbone(config["backbone"], config["runtime"]["dtype"], axis)
    classifier = pretrain.Classifier(
        len(split.class_names), group["hidden"], uniform=group["classifier_init"] == "uniform"
    )
    optimizer = build.optimizer(group, group["lr"])
    shape = build.image_shape(config["data"], split.images)
    if group["rotation"] and shape[0] != shape[1]:
        raise ConfigError(
            f"config.pretrain.rotation is {group['rotation']}, but images are {shape[0]} x {shape[1]} pixels; turning "
            "them needs squares: set data.image_size, or rotation to 0"
        )
    variables, distillation = _teacher(config)
    take = functools.partial(
        pretrain.train_step, optimizer=optimizer, backbone=module, classifier=classifier,
        batch_statistics=group["batch_norm"], label_smoothing=group["label_smoothing"], rotation=group["rotation"],
        dropblock_ramp=group["dropblock_ramp"],
        rotation_views=group["rotation_views"], rotation_head=group["rotation_head"],
        distillation=distillation, average=group["average"],
    )  # fmt: skip
    init = functools.partial(
        pretrain.init_state, backbone=module, classifier=classifier, image_shape=shape, optimizer=optimizer,
        rotation=group["rotation"] > 0, rotation_head=group["rotation_head"],
        teacher=variables, average=group["average"] > 0,
    )  # fmt: skip
    return PretrainParts(module, init, take)


def _teacher(config: Config) -> tuple[Params | None, pretrain.Distillation | None]:
    """The variables of a run's teacher and what it adds to the loss, where `pretrain.teacher` names one."""
    group = config["pretrain"]
    if not group["teacher"]:
        return None, None
    found = teacher.checkpoints(config).selected(group["select"])
    variables, logits = teacher.network(found, config["runtime"]["dtype"])
    return variables, pretrain.Distillation(logits, group["distill_weight"], group["temperature"])


def pretraining(config: Config, dataset: Dataset, devices: Sequence[jax.Device]) -> Phase:
    """Pre-training of a whole config on the train split."""
    group, split = config["pretrain"], dataset.splits["train"]
    module, init, take = pretrain_parts(config, split, parallel.AXIS if len(devices) > 1 else None)
    state = init(build.stream(config, build.BACKBONE))
    dispatch = pretrain_dispatch.dispatcher(
        config, split, devices, take, keys=(build.stream(config, build.ORDER), build.stream(config, build.AUGMENT))
    )
    return _phase(
        config, group, "pretrain",
        state=parallel.replicate(state, devices),
        dispatch=dispatch.run, close=dispatch.close,
        items=lambda state: _items(state, ("params", "batch_stats", "opt_state", "average")),
        restore=lambda items, step: parallel.replicate(
            pretrain.PretrainState(jnp.int32(step), **items, teacher=state.teacher), devices
        ),
        validate=_pretrain_validation(config, dataset, module, devices),
        unit="images", per_step=group["batch_size"],
    )  # fmt: skip


def _pretrain_validation(config: Config, dataset: Dataset, module: Any, devices: Sequence[jax.Device]) -> Any:
    group = config["pretrain"]
    if not group["val_tasks"] or "val" not in dataset.splits:
        return None
    split, protocol = dataset.splits["val"], build.validation(config, group)
    mode = "batch" if group["batch_norm"] == "batch" else "running"
    embed = Embed(build.backbone(config["backbone"], config["runtime"]["dtype"]), mode, build.prepare(config["data"]))

    def validate(state):
        params, batch_stats = network.backbone_of(parallel.local(state._asdict()))
        head = build.fresh_head(config, embed.width(params, batch_stats, split.images.shape[1:]))
        return _score(config, Model(embed, {"head": head}, Frozen(params, batch_stats)), split, protocol, devices)

    return validate


def _score(
    config: Config, model: Model, split: Split, protocol: Protocol, devices: Sequence[jax.Device]
) -> tuple[float, dict[str, float]]:
    runtime = config["runtime"]
    accuracies = evaluate_tasks(
        model, split.images, split.table(), protocol,
        embed_batch=runtime["embed_batch"], chunk=runtime["task_chunk"], devices=devices,
    )  # fmt: skip
    mean, ci95 = metrics.mean_interval(accuracies)
    return mean, {"accuracy": mean} | ({} if ci95 is None else {"ci95": ci95})


def meta_training(
    config: Config, dataset: Dataset, devices: Sequence[jax.Device], params: Params, batch_stats: Params,
    watch: Watch | None = None,
) -> Phase:  # fmt: skip
    """Meta-training of a whole config on the train split, from a pre-trained backbone."""
    group, split = config["meta"], dataset.splits["train"]
    embed, optimizer = build.embedding(config), build.meta_optimizer(group)
    state = meta_state(config, embed, optimizer, params, batch_stats, split.images.shape[1:])
    if config["hard_tasks"]["enabled"]:
        state = state._replace(pool=hard_tasks.empty_pool(len(split.class_names)))
    theta = parallel.replicate(params, devices)
    dispatch = dispatcher(
        config, split, devices, theta, keys=(build.stream(config, build.TASKS), build.stream(config, build.HARD_TASKS)),
        embed=embed, inner=build.inner(config["inner"]), optimizer=optimizer, watch=watch,
    )  # fmt: skip
    return _phase(
        config, group, "meta",
        state=parallel.replicate(state, devices),
        dispatch=dispatch.run, close=dispatch.close,
        items=lambda state: {"params": parallel.local(theta), **_meta_items(state)},
        restore=lambda items, step: parallel.replicate(_meta_state(items, step), devices),
        validate=_meta_validation(config, dataset, embed, params, devices),
        unit="tasks", per_step=group["tasks_per_step"],
    )  # fmt: skip


def meta_state(
    config: Config, embed: Embed, optimizer: Any, params: Params, batch_stats: Params, image_shape: tuple[int, ...]
) -> meta.MetaState:
    """The state before meta-training, stored images being [H, W, C]."""
    features = embed.width(params, batch_stats, image_shape)
    return meta.init_state(
        build.learned(build.stream(config, build.HEAD), config, params, features), batch_stats, optimizer
    )


def _meta_validation(
    config: Config, dataset: Dataset, embed: Embed, params: Params, devices: Sequence[jax.Device]
) -> Any:
    group = config["meta"]
    if not group["val_tasks"] or "val" not in dataset.splits:
        return None
    split, protocol = dataset.splits["val"], build.validation(config, group)

    def validate(state):
        learned, batch_stats = parallel.local((state.learned, state.batch_stats))
        return _score(config, Model(embed, learned, Frozen(params, batch_stats)), split, protocol, devices)

    return validate


def _meta_items(state: meta.MetaState) -> dict[str, Any]:
    items = _items(state, ("learned", "batch_stats", "opt_state"))
    return items if state.pool is None else {**items, "hard_tasks": {"pool": parallel.local(state.pool)}}


def _meta_state(items: Mapping[str, Any], step: int) -> meta.MetaState:
    pool = items["hard_tasks"]["pool"] if "hard_tasks" in items else None
    return meta.MetaState(jnp.int32(step), items["learned"], items["batch_stats"], items["opt_state"], pool)


def _items(state: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: parallel.local(getattr(state, name)) for name in names if getattr(state, name) is not None}


def _phase(config: Config, group: Config, name: str, **fields: Any) -> Phase:
    runtime = config["runtime"]
    return Phase(
        name=name, steps=group["steps"], val_every=group["val_every"], per_dispatch=runtime["steps_per_dispatch"],
        log_every=runtime["log_every"], checkpoint_every=runtime["checkpoint_every"],
        skip=runtime["skip_nonfinite"], **fields,
    )  # fmt: skip
