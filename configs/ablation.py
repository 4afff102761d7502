"""One row of the paper's ablation on glyphs; `python -m mtl_jax.ablation` runs all rows from one pre-training.

    python train.py --config=configs/ablation.py:ss_all --workdir=runs/ss_all

Argument: train_all, train_head, ft_head, ft_last, ft_all, maml, ss_last, ss_all, ft_all_hard, ss_all_hard.
"""

from ml_collections import ConfigDict
from mtl_jax.configs import glyphs

from mtl_jax.ablation import apply_row


def get_config(arg: str = "ss_all") -> ConfigDict:
    """glyphs, 1-shot, as the row has it."""
    return apply_row(glyphs.get_config("1shot"), arg)
