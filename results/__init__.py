"""What was measured: a JSON file a row, the networks as small weight files, and the program that makes and checks both.

    python -m results keep --shot=1 --run=train_head=runs/fc100 --run=ss_all=runs/fc100-ss --commit=HASH
    python -m results check --data=D      # evaluates every kept network again; 1 where a figure is not what it was
    python -m results effects --data=D ROW ...   # what options of evaluation change, on the same tasks
    python -m results options --workdir=W        # what single options change on glyphs, from one pre-training
    python -m results ladder --data=D --workdir=W --commit=HASH    # FC100's recipe on a CPU, one part at a time
    python -m results sweep --data=D --workdir=W --init=W --commit=HASH    # what meta-training adds, by validation
    python -m results gpu --data=D --plan=fc100 --minutes=8        # a data set's rows in the minutes of a GPU
    python -m results imagenet --data=D          # the package's networks on photographs: five classes, three of each
    python -m results pretrained --data=D --workdir=W --commit=HASH    # MTL on the package's network for photographs
    python -m results table               # writes the tables of README.md and docs/ from the JSON files

`D` holds a folder a data set: D/fc100, D/omniglot, as `configs/` take them.
"""
