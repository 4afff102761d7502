"""A folder of one's own with a subfolder a class, in any variant of the method.

    python train.py --config=configs/folder.py:resnet12,5shot --config.data.path=D --workdir=runs/folder
    python evaluate.py --workdir=runs/folder

Argument, words separated by commas: `1shot` (default) or `5shot`; `pytorch`, `tensorflow` or `paper` for that variant
(without: the project's own default); `conv4`, `resnet12`, `resnet18` or `resnet25` for another backbone than the
variant's own (resnet25 for `pytorch`, else resnet12). The schedules are those of mini-ImageNet's 38,400 training
images: change `pretrain.steps` with the number of yours. Without train/, val/ and test/ folders, add
--config.data.fractions='(0.6,0.2,0.2)'. Grey images: --config.data.channels=1 and one number in data.mean and data.std.
"""

from ml_collections import ConfigDict
from mtl_jax.configs import default

from mtl_jax.config import presets


def get_config(arg: str = "1shot") -> ConfigDict:
    """A folder of class folders."""
    config = default.get_config()
    config.data.name = "folder"
    return presets.apply(config, arg, presets.MINIIMAGENET)
