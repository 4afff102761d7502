"""Row e's sizes, for both sides: those of mini-ImageNet's test classes at 60 images each, and tiny ones (True)."""

CLASSES, WAY, LR = 20, 5, 0.01
SIDE = {False: 84, True: 32}
EACH = {False: 60, True: 10}
WIDTH = {False: 1.0, True: 0.1}
QUERY = {False: 15, True: 3}
INNER_STEPS = {False: 100, True: 10}
TASKS = {False: (600, 10_000), True: (20, 200)}
RIVAL_SECONDS = {False: 30.0, True: 0.5}  # a repeat of the rival takes as many tasks as fit into them
CHECKED = 4  # tasks whose accuracies both sides must agree on
