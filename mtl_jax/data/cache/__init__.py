"""The cache: a folder a data set, with memory maps sorted by class; written whole or not at all.

Start at build.py, which decodes a source (blocks.py, a class at a time) and writes it (writer.py; resume.py after a
stop). reader.py opens a folder and says where the cache is.
"""
