"""Launcher of `mtl_jax.train`: python train.py --config=configs/X.py[:arg] --workdir=DIR [--config.a.b=v ...]"""

from mtl_jax.launch import start

if __name__ == "__main__":
    start.run("train")
