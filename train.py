"""Launcher of `mtl_jax.train`: python train.py --config=configs/X.py[:arg] --workdir=DIR [--config.a.b=v ...]"""

import sys

from mtl_jax.launch import program
from mtl_jax.train.__main__ import main

if __name__ == "__main__":
    sys.exit(program.run(main))
