"""Builds the package; setup.cfg says all else."""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Takes the files of `mtl_jax.configs` from configs/ at the top.

    A mapping in `package_dir` would do the same, but then `pip install -e .` hides the package from type checkers.
    """

    def get_package_dir(self, package: str) -> str:
        """The folder of a package's files."""
        return "configs" if package == "mtl_jax.configs" else super().get_package_dir(package)


setup(cmdclass={"build_py": BuildPy})
