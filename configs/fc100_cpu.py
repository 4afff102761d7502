"""FC100 at 32 x 32 sized for two CPU cores: conv4, or a resnet12 or resnet12_640 of a quarter of the channels.

    python train.py --config=configs/fc100_cpu.py:conv4,1shot --config.data.path=D --workdir=runs/fc100
    python evaluate.py --workdir=runs/fc100

Argument: `conv4` (default), `resnet12` or `resnet12_640`, and `1shot` (default) or `5shot`. A second shot can
share the first one's pre-training: --config.pretrain.init=runs/fc100. docs/results.md has what was measured with it.
"""

from ml_collections import ConfigDict
from mtl_jax.configs import fc100

from mtl_jax.config import presets


def get_config(arg: str = "conv4,1shot") -> ConfigDict:
    """FC100 on a CPU: the project's default with a short schedule."""
    config = fc100.get_config(arg if "resnet12" in arg else f"conv4,{arg.replace('conv4', '')}")
    if config.backbone.name != "conv4":
        config.backbone.width = 0.25
    if config.backbone.name == "resnet12_640":
        presets.three_drops(config, 15 * (presets.FC100.images // 64))
    else:
        config.pretrain.update({"steps": 5000, "val_every": 500})
    # As on Omniglot: of 3e-3, 1e-3 and 3e-4 validation is best at the least, 33.5, 34.1 and 34.2 % (1-shot).
    config.meta.lr = 3e-4
    config.meta.steps = 200
    config.meta.val_every = 50
    config.hard_tasks.extra = 8
    config.runtime.checkpoint_every = 500
    return config
