"""Few-shot classification of your own photographs: FewShotClassifier, and a program that sorts a folder.

Start with classifier.py. To change what images are accepted, read inputs.py; what the program writes, sort.py;
other base-learners than the linear head, learner.py.
"""

from mtl_jax.classify.classifier import FewShotClassifier

__all__ = ["FewShotClassifier"]
