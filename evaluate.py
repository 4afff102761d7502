"""Launcher of `mtl_jax.evaluate`: python evaluate.py --workdir=DIR [--split=test] [--num_tasks=600] [--shot=1]"""

from mtl_jax.launch import start

if __name__ == "__main__":
    start.run("evaluate")
