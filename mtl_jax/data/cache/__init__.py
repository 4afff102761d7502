"""The prepared form of a data set: uint8 memory maps, sorted by class.

reader.py opens it; build.py and writer.py make it.
"""
