"""A network from a file that people have: module, parameters, and how its images are prepared.

ResNet-18, -34, -50 and vision transformers of torchvision, timm, DINO, DINOv2 and Hugging Face.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from mtl_jax import scale_shift
from mtl_jax.backbones import create_backbone
from mtl_jax.errors import CheckpointError, MtlError, first_line
from mtl_jax.reference_weights import file_formats, files, pth, pytorch, vision_keys
from mtl_jax.reference_weights.trees import ReferenceWeights
from mtl_jax.types import Params
from mtl_jax.vision_vit import Form, ViT
from mtl_jax.workdir import named_arrays

HUB = "hf-hub:"
_POSITIONS = "params/positions"
_IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
_HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # what a model on the hub keeps its weights in
_SETTINGS = ("config.json", "preprocessor_config.json")
_RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class Network(NamedTuple):
    """A network of a file.

    module: images [B, H, W, C], normalised, to features [B, F]; called as `create_backbone`'s are.
    params, batch_stats: its variables, NumPy arrays in float32.
    description: how its images are prepared: {'image_size', 'resize', 'interpolation', 'mean', 'std'}. The shorter side
      is resized to `resize` pixels and the centre cropped to `image_size`; mean and std are for pixels from 0 to 1.
    left_out: keys of the file that are no part of it, such as a classifier.
    """

    module: nn.Module
    params: Params
    batch_stats: Params
    description: dict[str, Any]
    left_out: tuple[str, ...] = ()


def load_network(file: str | Path, *, heads: int | None = None, positions: str | None = None) -> Network:
    """The network of a weight file, found from its keys and shapes.

    Args:
      file: a `.pth`, `.bin` or `.safetensors` file, one that `convert` wrote, a folder as the hub has it, or
        'hf-hub:owner/name' (needs huggingface_hub), with '@revision' after it for another than the newest. A
        config.json and a preprocessor_config.json of Hugging Face or timm beside the file are read, too.
      heads: of attention, where the width does not tell it (192, 384, 768, 1024 and some more do).
      positions: how a transformer's positions are resampled for images of another size: 'timm' or 'dino' (see
        `vision_vit.Form`); None: 'dino' for files of the DINOv2 code without registers, else 'timm'.

    Returns:
      Network(module, params, batch_stats, description, left_out).

    Raises:
      CheckpointError: unreadable, or no such network: lists every missing, surplus and wrongly shaped key.
    """
    found = read(file, heads=heads, positions=positions)
    if isinstance(found, Network):
        return found
    params = scale_shift.apply(found.params, found.ss) if found.ss else found.params
    return Network(found.module(), *_single(params, found.batch_stats), {})


def read(file: str | Path, *, heads: int | None = None, positions: str | None = None) -> Network | ReferenceWeights:
    """`load_network`, with the weights of few-shot learning's publications as `load_reference_weights` gives them."""
    path = _fetched(str(file)) if str(file).startswith(HUB) else Path(file)
    path = in_folder(path) or path
    if not path.is_file():
        return files.load_reference_weights(file)  # several, a folder, or none
    kind, settings, content = files.kind_of(path), _settings(path), None
    known = {"heads": heads or settings.get("num_attention_heads"), "positions": positions}
    if kind == "safetensors":
        content, metadata = file_formats.read_safetensors(path)
        if "network" in metadata:
            return _own(content, metadata, path, positions)
    elif kind == "pth":
        content = pth.read(path)
    state = pytorch.unwrapped(content, str(path)) if isinstance(content, Mapping) else {}
    if vision_keys.dialect_of(state):
        known["epsilon"] = settings.get("layer_norm_eps")
        found = vision_keys.read(state, str(path), **known)
        images = _images(_HALF if found.has_classifier else _IMAGENET, "bicubic", settings, path)
        return Network(ViT(found.form), found.params, {}, images, found.left_out)
    if not (pytorch.backbone_of(state) or "").startswith("imagenet"):
        return files.load_reference_weights(path)
    weights = files.from_mapping(content, str(path))
    images = _images(_IMAGENET, "bilinear", settings, path)
    return Network(weights.module(), *_single(weights.params, weights.batch_stats), images, pytorch.left_out(state))


def in_folder(path: Path) -> Path | None:
    """The weight file in a folder as the hub has it; None for what is no such folder."""
    return next((path / name for name in _WEIGHTS if (path / name).is_file()), None)


def _single(params: Params, batch_stats: Params | None) -> tuple[Params, Params]:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (params, batch_stats or {}))


def write(network: Network, path: Path) -> None:
    """Writes a network as safetensors, with its form and how images are prepared as metadata.

    Raises:
      CheckpointError: not one of `load_network`'s kinds.
    """
    arrays = named_arrays.flatten({"params": network.params, "batch_stats": network.batch_stats})
    name, options = named(network.module)
    content = {"name": name, "options": options, "images": network.description}
    metadata = {"backbone": name, "network": json.dumps(content, sort_keys=True)}
    file_formats.write_safetensors(path, arrays, metadata)


def named(module: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name and the options of a module of `load_network`'s kinds."""
    if isinstance(module, ViT):
        options = dataclasses.asdict(module.form)
        del options["dtype"]
        return "vit", options
    return f"imagenet_resnet{module.depth}", {"width": module.options.width}


def _own(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], path: Path, positions: str | None) -> Network:
    """A network that `write` wrote."""
    trees = named_arrays.nest(arrays)
    try:
        content = json.loads(metadata["network"])
        name, options = content["name"], content["options"] | ({"positions": positions} if positions else {})
        blocks = sum(key.startswith("block") for key in trees["params"])
        if name == "vit" and (options["depth"] != blocks or not 0 < options["grid"] ** 2 <= arrays[_POSITIONS].size):
            raise ValueError("its form is not that of its arrays")
        module = ViT(Form(**options)) if name == "vit" else create_backbone(name, **options)
        images = _checked(content["images"])
        side = module.form.patch if name == "vit" else 64
        like = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, side, side, len(images["mean"]))))
    except Exception as error:  # metadata of any kind make a module raise nearly anything
        reason = ascii(first_line(error))[1:-1]
        raise CheckpointError(f"{path}: not a network that mtl_jax wrote ({reason}); convert it again") from error
    params, stats = (
        named_arrays.fit(like.get(group, {}), trees.get(group, {}), str(path)) for group in ("params", "batch_stats")
    )
    return Network(module, params, stats, images)


def _images(
    colours: Mapping[str, list[float]], interpolation: str, settings: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """How images are prepared: what most networks of this kind were trained on, and what the settings beside it say."""
    try:
        return _described(colours, interpolation, settings)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: {' or '.join(_SETTINGS)} beside it does not say how images are prepared ({error}); remove it"
        ) from error


def _described(colours: Mapping[str, list[float]], interpolation: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    images = {"image_size": 224, "resize": 256, "interpolation": interpolation, **colours}
    timm = settings.get("pretrained_cfg", settings)
    if "input_size" in timm:
        images["image_size"] = int(timm["input_size"][-1])
        images["resize"] = int(images["image_size"] / timm.get("crop_pct", 0.875))
        images["interpolation"] = timm.get("interpolation", interpolation)
    elif size := _side(settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")):
        images["image_size"] = size
        images["resize"] = _side(settings.get("size")) or size
        images["interpolation"] = _RESAMPLING.get(settings.get("resample"), interpolation)
    for ours, *theirs in (("mean", "mean", "image_mean"), ("std", "std", "image_std")):
        values = next((source[key] for key in theirs for source in (timm, settings) if key in source), images[ours])
        images[ours] = [float(value) for value in values]
    return _checked(images)


def _checked(images: dict[str, Any]) -> dict[str, Any]:
    """A description as it is. Raises ValueError or TypeError: it is none."""
    if images.keys() != {"image_size", "resize", "interpolation", "mean", "std"}:
        raise ValueError(f"the description of images has {', '.join(images)}")
    sizes = images["image_size"], images["resize"]
    if any(type(size) is not int for size in sizes) or not 0 < sizes[0] <= sizes[1] < 1 << 14:
        raise ValueError(f"images of {sizes[0]} pixels from {sizes[1]}")
    if not all(0 <= mean <= 1 and std > 0 for mean, std in zip(images["mean"], images["std"], strict=True)):
        raise ValueError(f"pixels with a mean of {images['mean']} and a standard deviation of {images['std']}")
    return images


def _side(size: Any) -> int | None:
    """Pixels of a size of Hugging Face's: a number, {'height', 'width'} or {'shortest_edge'}."""
    if isinstance(size, Mapping):
        size = size.get("shortest_edge") or size.get("height")
    return int(size) if size else None


def _settings(path: Path) -> dict[str, Any]:
    """What Hugging Face's and timm's JSON files beside a weight file say."""
    settings: dict[str, Any] = {}
    for name in _SETTINGS:
        file = path.parent / name
        if file.is_file() and file.stat().st_size < 1 << 20:
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except (ValueError, RecursionError) as error:
                raise CheckpointError(f"{file}: not JSON ({error}); fetch it again, or remove it") from error
            settings |= content if isinstance(content, dict) else {}
    for name, kind in (("num_attention_heads", int), ("layer_norm_eps", float)):
        if not isinstance(settings.get(name), kind):
            settings.pop(name, None)
    return settings


def _fetched(name: str) -> Path:
    """The weight file of a model on the hub, in huggingface_hub's cache, its settings beside it."""
    try:
        import huggingface_hub as hub
    except ImportError as error:
        raise MtlError(f"{name}: needs huggingface_hub; run: pip install 'mtl_jax[hub]'") from error
    model, _, revision = name.removeprefix(HUB).partition("@")

    def fetch(file: str) -> Path | None:
        try:
            return Path(hub.hf_hub_download(model, file, revision=revision or None))
        except (hub.errors.EntryNotFoundError, hub.errors.LocalEntryNotFoundError):
            return None
        except Exception as error:  # the library's, its connection's, a wrong name's
            raise CheckpointError(f"{name}: {' '.join(str(error).split())[:300]}") from error

    for file in _SETTINGS:
        fetch(file)
    paths = [path for path in map(fetch, _WEIGHTS) if path]
    if not paths:
        raise CheckpointError(
            f"{name}: has neither {' nor '.join(_WEIGHTS)}, or cannot be reached from here; give its weights' file"
        )
    return paths[0]
