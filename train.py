"""Launcher of `mtl_jax.train`: python train.py --config=configs/X.py[:arg] --workdir=DIR [--config.a.b=v ...]"""

import sys

from mtl_jax import cli, train

if __name__ == "__main__":
    sys.exit(cli.run(train.main))
