"""Five classes, three photographs of each: FewShotClassifier, and the program that sorts a folder.

Start with classifier.py.
"""

from mtl_jax.classify.classifier import FewShotClassifier

__all__ = ["FewShotClassifier"]
