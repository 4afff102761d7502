"""One module for each form a data set comes in. find.py chooses; a new format is a module here and a line there."""
