"""Configs of the experiments; installed as `mtl_jax.configs`. `default.py` has every key, the others change a few."""
