"""One module for each form in which people have a data set.

Start at find.py, which decides what a path holds. To add a format, write a module with a function
`source(tree, name, splitting)`, which returns None where the tree is of another format (csv_images.py is the shortest
example), and name the function in the table `FORMATS` of find.py.
"""
