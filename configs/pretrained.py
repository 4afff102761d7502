"""MTL on top of a network that others have pre-trained on photographs: its last block is scaled and shifted.

    python train.py --config=configs/pretrained.py:lite0,1shot --config.data.path=D --workdir=runs/photos
    python evaluate.py --workdir=runs/photos
    python -m mtl_jax.ablation --config=configs/pretrained.py:lite0,1shot,fc100 --config.data.path=D \
        --workdir=runs/pretrained --rows=train_head,ft_head,ft_last,ss_last,ssf_last

Argument, words separated by commas: `lite0`, the package's EfficientNet-Lite0 with ImageNet's weights; `1shot`
(default) or `5shot`; the data: `folder` (default), class folders of your own, `fc100`, `cifar_fs` or `miniimagenet`.
All images are brought to the network's 224 pixels. What the blocks below the last one compute is kept in the cache,
19 kB an image, so only the first run sends the images through the whole network. It has seen 1000 classes of ImageNet,
so its figures have a section of their own in docs/results.md.

FC100's validation classes chose the rates, 1-shot, before any test. The head's, on 2,000 tasks: features of unit
length gave 58.0 % at 3.0 (58.0 at 1.0, 58.1 at 10), plain ones at best 57.5, at 0.01. `meta.lr`, on 600 tasks
after 30 steps of one seed: SS 57.74 % at 1e-4 and 57.50 at 5e-4, SSF 57.47 at 1e-3. These lie within each other's
intervals of 1.1, so all that they say is that higher rates gained nothing.
"""

from ml_collections import ConfigDict
from mtl_jax.configs import default

from mtl_jax.config import presets

DATA = ("folder", "fc100", "cifar_fs", "miniimagenet")


def get_config(arg: str = "lite0,1shot") -> ConfigDict:
    """EfficientNet-Lite0, its last block in meta-training."""
    config = default.get_config()
    words = presets.words(arg, (("lite0",), tuple(presets.SHOTS), DATA))
    config.meta.shot = presets.SHOTS[words[1] or "1shot"]
    config.data.update({
        "name": words[2] or "folder", "image_size": 224, "resize": 224, "interpolation": "bicubic", "channels": 3,
        "mean": (127 / 255,) * 3, "std": (128 / 255,) * 3, "convert": words[2] in ("", "folder"),
    })  # fmt: skip
    config.backbone.update({"name": "efficientnet_lite0", "norm_epsilon": 1e-3})
    config.pretrain.init = "imagenet-lite0"
    config.inner.update({"steps": 20, "lr": 3.0, "features": "l2"})
    config.meta.update({"blocks": "last", "tasks_per_step": 4, "query": 5, "steps": 200, "val_every": 50, "lr": 1e-4})
    config.runtime.update({"cache_trunk": True, "embed_batch": 16, "log_every": 10, "checkpoint_every": 100})
    return config
