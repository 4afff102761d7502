"""Launcher of `mtl_jax.evaluate`: python evaluate.py --workdir=DIR [--split=test] [--num_tasks=600] [--shot=1]"""

import sys

from mtl_jax import cli, evaluate

if __name__ == "__main__":
    sys.exit(cli.run(evaluate.main))
