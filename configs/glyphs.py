"""The embedded data set: 32 x 32 letters of unseen scripts, conv4, minutes on a CPU.

    python train.py --config=configs/glyphs.py:1shot --workdir=runs/glyphs

Argument: 1shot (default) or 5shot. `make demo` runs both from one pre-training; README has its table.
"""

from ml_collections import ConfigDict
from mtl_jax.configs import default

from mtl_jax.config import presets


def get_config(arg: str = "1shot") -> ConfigDict:
    """conv4 on glyphs."""
    shot = presets.shots(arg)
    config = default.get_config()
    config.pretrain.augment.shift = 2
    config.inner.lr = 0.03 if shot == 1 else 0.05
    config.meta.shot = shot
    config.meta.lr = 3e-3
    config.meta.decay = "cosine"
    config.meta.steps = 200
    config.meta.val_every = 50
    config.meta.val_tasks = 2000
    return config
