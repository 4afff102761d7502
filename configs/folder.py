"""Your own class folders: a CPU-sized config by default, or any variant of the method.

    python train.py --config=configs/folder.py:1shot --config.data.path=D --workdir=runs/folder
    python evaluate.py --workdir=runs/folder

Argument: words separated by commas. `1shot` (default) or `5shot`. Without another word: conv4 on images of 32 pixels,
minutes on two CPU cores. `resnet12_640`, `resnet12`, `resnet18` or `resnet25` selects that backbone on larger images,
of 84 pixels or 80 of 92, with the schedule for mini-ImageNet's 38,400 training images, which needs a GPU; with fewer
images lower `pretrain.steps`. `pytorch`, `tensorflow` or `paper` selects that variant. Folders without train/, val/ and
test/ need fractions of the classes: --config.data.fractions='(0.5,0.25,0.25)' fits 20 classes. Grey images:
--config.data.channels=1, and one number each in data.mean and data.std.
"""

from ml_collections import ConfigDict
from mtl_jax.configs import default

from mtl_jax.backbones import NAMES
from mtl_jax.config import presets

LARGE = {*presets.PRESETS, *NAMES} - {"conv4"}


def get_config(arg: str = "1shot") -> ConfigDict:
    """A folder of class folders."""
    config = default.get_config()
    config.data.name = "folder"
    words = arg.split(",")
    if LARGE & set(words):
        return presets.apply(config, arg, presets.MINIIMAGENET)
    presets.apply(config, arg if "conv4" in words else f"conv4,{arg}", presets.MINIIMAGENET._replace(small=True))
    config.pretrain.update({"steps": 2000, "batch_size": 64, "val_every": 500, "val_tasks": 600})
    config.meta.update({"steps": 200, "lr": 3e-4, "val_every": 50, "val_tasks": 600})
    config.runtime.update({"checkpoint_every": 500, "log_every": 20})
    return config
