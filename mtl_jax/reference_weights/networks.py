"""A network from a file that people have: module, parameters, and how its images are prepared.

ResNet-18, -34, -50 and vision transformers of torchvision, timm, DINO, DINOv2 and Hugging Face.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from mtl_jax import scale_shift
from mtl_jax.backbones import create_backbone
from mtl_jax.config.own_backbone import HUB
from mtl_jax.config.recipe import Prepare
from mtl_jax.data.transforms import Transform
from mtl_jax.embed import Embed
from mtl_jax.errors import CheckpointError, ConfigError, MtlError, first_line
from mtl_jax.evaluation import Model, embed_all
from mtl_jax.meta import Frozen
from mtl_jax.reference_weights import file_formats, files, pth, pytorch
from mtl_jax.reference_weights.mobile import MOBILE
from mtl_jax.reference_weights.trees import ReferenceWeights
from mtl_jax.reference_weights.vision import images as vision_images
from mtl_jax.reference_weights.vision import keys as vision_keys
from mtl_jax.types import Params
from mtl_jax.vision_vit import Form, ViT
from mtl_jax.workdir import manifest, named_arrays

BATCH = 16  # photographs embedded at once
_POSITIONS = "params/positions"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # what a model on the hub keeps its weights in


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network of a file, and a function of prepared photographs, uint8 [B, H, W, C] -> features, float32 [B, F].

    module: images [B, H, W, C], normalised, to features [B, F]; called as `create_backbone`'s are.
    params, batch_stats: its variables, NumPy arrays in float32.
    description: how its images are prepared, see `vision/images.py`; {} where nothing tells.
    left_out: keys of the file that it does not use, such as a classifier.
    """

    module: nn.Module
    params: Params
    batch_stats: Params
    description: dict[str, Any]
    left_out: tuple[str, ...] = ()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features of images as `transform` prepares them. Raises ConfigError for another shape."""
        if images.shape[1:] != self.image_shape:
            raise ConfigError(f"images of {list(images.shape[1:])}, the network takes {list(self.image_shape)}")
        return features(self.embed, self.params, self.batch_stats, images, BATCH)

    @property
    def embed(self) -> Embed:
        """The network with its normalisation. Raises ConfigError where nothing tells that."""
        self._check_described()
        prepare = Prepare(0, tuple(self.description["mean"]), tuple(self.description["std"]))
        return Embed(self.module, "running", prepare)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of prepared images."""
        transform = self.transform
        return transform.image_size, transform.image_size, transform.channels

    @property
    def transform(self) -> Transform:
        """How an image of any size and mode is prepared. Raises ConfigError where nothing tells."""
        self._check_described()
        size, resize, channels = self.description["image_size"], self.description["resize"], self.description["mean"]
        return Transform(size, resize, len(channels), convert=True, interpolation=self.description["interpolation"])

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of everything that an image's features depend on: architecture, image preparation, all weights."""
        default = {field.name: field.default for field in dataclasses.fields(Form)}
        name, options = named(self.module)
        facts = {key: value for key, value in options.items() if value != default.get(key)}  # new ones change nothing
        return manifest.fingerprint([name, facts, self.description], self.params, self.batch_stats)

    def _check_described(self) -> None:
        if not self.description:
            raise ConfigError(
                "this network's file does not say how its images are prepared: start a run from it "
                "(config.pretrain.init=FILE, config.meta.learn=none), and give its workdir"
            )

    def __deepcopy__(self, memo: Any) -> "Network":
        return self  # immutable; scikit-learn's clone deep-copies parameters

    def __repr__(self) -> str:
        return f"Network({named(self.module)[0]}, {self.fingerprint[:12]})"


def features(embed: Embed, params: Params, batch_stats: Params, images: np.ndarray, batch: int) -> np.ndarray:
    """Features of images, float32 [B, F], computed `batch` at a time; fewer are filled up, so few shapes compile."""
    count = len(images)
    missing = 0 if count >= batch else min(batch, 1 << (count - 1).bit_length()) - count
    padded = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)]) if missing else images
    model = Model(embed, {}, Frozen(params, batch_stats))
    return np.asarray(embed_all(model, padded, batch=batch))[:count]


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
    path = _place(file)
    found = read(path, heads=heads, positions=positions)
    if isinstance(found, Network):
        return found
    params = scale_shift.apply(found.params, found.ss) if found.ss else found.params
    images = vision_images.of_mobile(found.backbone, path) if found.backbone in MOBILE else {}
    return Network(found.module(), *_single(params, found.batch_stats), images)


def read(file: str | Path, *, heads: int | None = None, positions: str | None = None) -> Network | ReferenceWeights:
    """`load_network`, with the weights of few-shot learning's publications as `load_reference_weights` gives them."""
    path = _place(file)
    if not path.is_file():
        return files.load_reference_weights(path)  # several, a folder, or none
    kind, settings, content = files.kind_of(path), vision_images.read_settings(path), None
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
        images = vision_images.describe(
            vision_images.HALF if found.has_classifier else vision_images.IMAGENET, "bicubic", settings, path
        )
        return Network(ViT(found.form), found.params, {}, images, found.left_out)
    if not (pytorch.backbone_of(state) or "").startswith("imagenet"):
        return files.load_reference_weights(path)
    weights = files.from_mapping(content, str(path))
    images = vision_images.describe(vision_images.IMAGENET, "bilinear", settings, path)
    return Network(weights.module(), *_single(weights.params, weights.batch_stats), images, pytorch.left_out(state))


def _place(file: str | Path) -> Path:
    path = _fetched(str(file)) if str(file).startswith(HUB) else Path(file)
    return in_folder(path) or path


def in_folder(path: Path) -> Path | None:
    """The weight file in a folder as the hub has it; None for other folders."""
    return next((path / name for name in _WEIGHTS if (path / name).is_file()), None)


def _is_grid(options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bool:
    return options.get("rotary") or 0 < options["grid"] ** 2 <= arrays[_POSITIONS].size


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
    name = f"imagenet_resnet{module.depth}" if hasattr(module, "depth") else type(module).__name__
    return name, {"width": module.options.width}


def _own(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str], path: Path, positions: str | None) -> Network:
    """A network that `write` wrote."""
    trees = named_arrays.nest(arrays)
    try:
        content = json.loads(metadata["network"])
        name, options = content["name"], content["options"] | ({"positions": positions} if positions else {})
        blocks = sum(key.startswith("block") for key in trees["params"])
        if name == "vit" and (options["depth"] != blocks or not _is_grid(options, arrays)):
            raise ValueError("its form is not that of its arrays")
        module = ViT(Form(**options)) if name == "vit" else create_backbone(name, **options)
        images = vision_images.checked(content["images"])
        side = module.form.patch if name == "vit" else 64
        like = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, side, side, len(images["mean"]))))
    except Exception as error:  # metadata of any kind make a module raise nearly anything
        reason = ascii(first_line(error))[1:-1]
        raise CheckpointError(f"{path}: not a network that mtl_jax wrote ({reason}); convert it again") from error
    params, stats = (
        named_arrays.fit(like.get(group, {}), trees.get(group, {}), str(path)) for group in ("params", "batch_stats")
    )
    return Network(module, params, stats, images)


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

    for file in vision_images.SETTINGS:
        fetch(file)
    paths = [path for path in map(fetch, _WEIGHTS) if path]
    if not paths:
        raise CheckpointError(
            f"{name}: has neither {' nor '.join(_WEIGHTS)}, or cannot be reached from here; give its weights' file"
        )
    return paths[0]
