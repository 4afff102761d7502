"""FC100 at 32 x 32 sized for ten minutes on one GPU: rotations in pre-training, a shorter schedule.

    python train.py --config=configs/fc100_gpu.py:1shot --config.data.path=D --workdir=runs/fc100
    python evaluate.py --workdir=runs/fc100

Argument: `1shot` (default) or `5shot`, and `resnet25` (default) or another backbone. A second shot can share the first
one's pre-training: --config.pretrain.init=runs/fc100. docs/results.md has what was measured with it; resnet25 overfits:
its validation is best after a third of the steps, which is the checkpoint that meta-training starts from.
"""

from ml_collections import ConfigDict
from mtl_jax.configs import fc100

from mtl_jax.backbones import NAMES
from mtl_jax.config import presets


def get_config(arg: str = "1shot") -> ConfigDict:
    """FC100 on a GPU: the default with self-supervision, 53 epochs for 100 and 800 meta-batches for 5,000."""
    named = set(NAMES).intersection(arg.split(","))
    config = fc100.get_config(arg if named else f"resnet25,{arg}")
    config.pretrain.rotation = 1.0
    config.pretrain.batch_size = 64  # each image at four angles
    config.pretrain.steps = 30_000
    if config.backbone.name == "resnet12_640":
        presets.three_drops(config, 30_000)
    config.pretrain.val_every = 3000
    config.meta.lr = 3e-4
    config.meta.steps = 800
    config.meta.val_every = 200
    config.runtime.update({"dtype": "auto", "steps_per_dispatch": 5, "memory_gb": 40.0, "checkpoint_every": 3000})
    return config
