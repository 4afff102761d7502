"""CIFAR-FS in any variant of the method and with any backbone.

    python train.py --config=configs/cifar_fs.py:resnet12,1shot --config.data.path=D --workdir=runs/cifar_fs
    python evaluate.py --workdir=runs/cifar_fs

Argument: words separated by commas. `1shot` (default) or `5shot`; `e3bm` for the base-learner of MTL's successor;
`pytorch`, `tensorflow` or `paper` for that variant (default: the project's own); `conv4`, `resnet12`, `resnet18` or
`resnet25` for another backbone than the variant's own (resnet25 for `pytorch`, otherwise resnet12). The
variants enlarge the 32 x 32 images to 84 or 92 pixels, as the implementations do with FC100; the project's default
keeps them at 32.
"""

from ml_collections import ConfigDict
from mtl_jax.configs import default

from mtl_jax.config import presets


def get_config(arg: str = "1shot") -> ConfigDict:
    """CIFAR-FS."""
    config = default.get_config()
    config.data.name = "cifar_fs"
    return presets.apply(config, arg, presets.CIFAR_FS)
