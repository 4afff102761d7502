"""How photographs are prepared for a network: what most of its kind were trained on, and what files beside it say.

A description is {'image_size', 'resize', 'interpolation', 'mean', 'std'}: the shorter side is resized to `resize`
pixels and the centre cropped to `image_size`; mean and std are for pixels from 0 to 1.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtl_jax.errors import CheckpointError

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
SETTINGS = ("config.json", "preprocessor_config.json")
_RESAMPLING: dict[Any, str] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def describe(
    colours: Mapping[str, list[float]], interpolation: str, settings: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """The description of a network's images.

    Args:
      colours, interpolation: what most networks of its kind were trained on.
      settings: of `read_settings`, which go before.
      path: its file, for messages.

    Raises:
      CheckpointError: the settings make no sense.
    """
    try:
        return _described(colours, interpolation, settings)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: {' or '.join(SETTINGS)} beside it does not say how images are prepared ({error}); remove it"
        ) from error


def of_mobile(backbone: str, path: Path) -> dict[str, Any]:
    """The description of an EfficientNet-Lite0's images, or a MobileNetV2's. Raises CheckpointError as `describe`."""
    if backbone == "mobilenet_v2":
        return describe(IMAGENET, "bilinear", read_settings(path), path)
    lite0 = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    return describe(lite0, "bicubic", read_settings(path), path)


def _described(colours: Mapping[str, list[float]], interpolation: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    images: dict[str, Any] = {"image_size": 224, "resize": 256, "interpolation": interpolation, **colours}
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
    return checked(images)


def checked(images: dict[str, Any]) -> dict[str, Any]:
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


def read_settings(path: Path) -> dict[str, Any]:
    """What Hugging Face's and timm's JSON files beside a weight file say."""
    settings: dict[str, Any] = {}
    for name in SETTINGS:
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
