"""The layouts in which the data sets of papers circulate, one module each.

sources/find.py tries them before the general formats; they have the same function `source(tree, name, splitting)`.
"""
