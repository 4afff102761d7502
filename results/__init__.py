"""What was measured: a JSON file a row, the networks as small weight files, and the program that makes and checks both.

    python -m results keep --shot=1 --run=train_head=runs/fc100 --run=ss_all=runs/fc100-ss --commit=HASH
    python -m results check --data=D      # evaluates every kept network again; 1 where a figure is not what it was
    python -m results effects --data=D ROW ...   # what options of evaluation change, on the same tasks
    python -m results options --workdir=W        # what single options change on glyphs, from one pre-training
    python -m results ladder --data=D --workdir=W  # FC100's recipe one part at a time, at a quarter of the width
    python -m results table               # writes the tables of README.md and docs/ from the JSON files

`D` holds a folder a data set: D/fc100, D/omniglot, as `configs/` take them.
"""
