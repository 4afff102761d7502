"""Tries an installed mtl_jax, from outside its checkout: `python tests/smoke.py VERSION`, as `make dist` does."""

import subprocess
import sys
import tempfile
from pathlib import Path


def main(version: str) -> None:
    """Raises where something of the package is missing."""
    import numpy as np
    from mtl_jax.configs import glyphs

    import mtl_jax

    assert mtl_jax.__version__ == version, f"version {mtl_jax.__version__}, expected {version}"
    assert glyphs.get_config("5shot").meta.shot == 5
    for name in mtl_jax.__all__:
        getattr(mtl_jax, name)
    rng = np.random.default_rng(0)
    dark, bright = (rng.integers(low, low + 60, (4, 40, 50, 3), np.uint8) for low in (0, 190))
    classifier = mtl_jax.FewShotClassifier.from_pretrained()
    classifier.fit([*dark[:3], *bright[:3]], ["dark"] * 3 + ["bright"] * 3)
    assert classifier.predict([dark[3], bright[3]]).tolist() == ["dark", "bright"]
    program = Path(sys.executable).with_name("mtl-jax")
    listed = subprocess.run([program], capture_output=True, text=True, check=True, cwd=tempfile.gettempdir()).stdout
    assert "mtl-jax classify" in listed, listed
    print(f"mtl_jax {version} in {Path(mtl_jax.__file__).parent}: works")


if __name__ == "__main__":
    main(*sys.argv[1:])
