"""FC100 in any variant of the method and with any backbone.

    python train.py --config=configs/fc100.py:1shot --config.data.path=D --workdir=runs/fc100
    python evaluate.py --workdir=runs/fc100

Argument: words separated by commas. `1shot` (default) or `5shot`; `e3bm` for the base-learner of MTL's successor;
`pytorch`, `tensorflow` or `paper` for that variant of the method; `conv4`, `resnet12`, `resnet12_640`, `resnet18` or
`resnet25` for another backbone. Without a variant and a backbone you get `resnet12_640`, pre-trained as published
recipes do it (`published_pretraining` in mtl_jax/config/presets.py). Another backbone without a variant has the
project's former schedule. Variants enlarge the 32 x 32 images to 84 or 92 pixels, as the implementations do; without
one they stay at 32.
"""

from ml_collections import ConfigDict
from mtl_jax.configs import default

from mtl_jax.config import presets


def get_config(arg: str = "1shot") -> ConfigDict:
    """FC100."""
    config = default.get_config()
    config.data.name = "fc100"
    return presets.apply(config, arg, presets.FC100)
