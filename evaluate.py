"""Launcher of `mtl_jax.evaluate`: python evaluate.py --workdir=DIR [--split=test] [--num_tasks=600] [--shot=1]"""

import sys

from mtl_jax.evaluate.__main__ import main
from mtl_jax.launch import program

if __name__ == "__main__":
    sys.exit(program.run(main))
