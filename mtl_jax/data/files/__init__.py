"""Text, names and paths in the files that people have, whatever system wrote them.

text.py reads text in any of the usual encodings, names.py knows what split names and class names mean, places.py finds
the file that a list calls by a path.
"""
