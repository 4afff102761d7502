"""Every key of a config, with its meaning and default. The other configs change a few of them.

The defaults follow good practice: batch norm by running averages (inductive), second-order meta-gradients, 15 query
images, selection on validation tasks only.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The default config."""
    config = ConfigDict()
    config.seed = 0  # of initialisation, pre-training order, augmentation and training tasks
    config.data = _data()
    config.backbone = _backbone()
    config.pretrain = _pretrain()
    config.inner = _inner()
    config.meta = _meta()
    config.hard_tasks = _hard_tasks()
    config.evaluate = _evaluate()
    config.runtime = _runtime()
    return config


def _data() -> ConfigDict:
    return ConfigDict({
        "name": "glyphs",  # glyphs, omniglot, miniimagenet, fc100, cifar_fs, tieredimagenet, cub, folder, tfds:NAME
        "path": "",  # your copy of the data; the format is detected
        "image_size": 0,  # side of the stored square images, in pixels; 0: unchanged
        "resize": 0,  # shorter side before the centre crop to image_size, in pixels; 0: image_size
        "interpolation": "bilinear",  # resize method: bilinear, bicubic; both antialiased
        "crop": 0,  # side of a centre crop on the device, after augmentation, in pixels; 0: none
        "channels": 0,  # 1 or 3; 0: unchanged
        "mean": (0.5,),  # of each channel, for pixel values from 0 to 1; subtracted from the images
        "std": (0.5,),  # of each channel; divides the images after that
        "rotations": False,  # add training classes rotated by 90, 180 and 270 degrees as further classes
        "fractions": (),  # share of the classes for train, val and test, for unsplit data: (0.5, 0.25, 0.25)
        "lists": "",  # instead of fractions, the classes of each split: a folder with {train,val,test}.txt, or JSON
        "split_seed": 0,  # assigns classes to the fractions
        "convert": False,  # accept 16-bit, CMYK, palette, alpha, EXIF-rotated and animated images
        "skip_corrupt": False,  # skip damaged files and files that are not images
        "max_pixels": 250_000_000,  # largest image to read, in pixels; larger ones are refused
        "allow": "",  # problems to accept, separated by commas: shared_classes, shared_images, repeated_images
        "cache_dir": "",  # empty: $MTL_JAX_CACHE, or the user's cache folder
        "device_budget_gb": 2.0,  # splits up to this size are kept on the device, larger ones on the host
    })  # fmt: skip


def _backbone() -> ConfigDict:
    return ConfigDict({
        # conv4, resnet12, resnet12_640, resnet18, resnet25; of others: imagenet_resnet18, -34, -50,
        # efficientnet_lite0, mobilenet_v2
        "name": "conv4",
        "width": 1.0,  # factor on every channel count
        "norm": "batch",  # batch, layer, none
        "activation": placeholder(str),  # relu, leaky_relu, relu6, none; unset: the reference's
        "dropout": placeholder(float),  # rate, in pre-training only; unset: the reference's
        "dropblock": 0,  # resnet12_640: side of the squares dropped after blocks 3 and 4, in pixels; 0: single pixels
        "conv_bias": placeholder(bool),  # biases on all or no convolutions; unset: where the reference has them
        "norm_scale": True,  # whether batch norm has a trained scale
        "norm_bias": True,  # whether batch norm has a trained offset
        "norm_epsilon": 1e-5,  # of batch norm; leave all norm_... keys unchanged with another norm
        "norm_momentum": 0.9,  # new average = norm_momentum * old average + (1 - norm_momentum) * batch
        "norm_unbiased": placeholder(bool),  # whether averages use the unbiased variance; unset: as in the reference
        "resize": 0,  # resnet18: TensorFlow 1's bilinear resize of the input to this side (reference: 224); 0: none
    })  # fmt: skip


def _pretrain() -> ConfigDict:
    return ConfigDict({
        "init": "",  # workdir, weight file or bundled network to start from instead of pre-training
        "steps": 2000,  # optimiser steps
        "batch_size": 64,  # images per step
        "drop_last": True,  # drop the last batch of an epoch if it is not full
        "shuffle": "epoch",  # epoch: a new order every epoch; once: one order for all epochs
        "hidden": 0,  # units of the classifier's hidden layer; 0: a linear classifier
        "classifier_init": "uniform",  # uniform: U(+-1/sqrt(fan_in)), as PyTorch; xavier: Xavier-uniform with biases 0
        "label_smoothing": 0.0,  # share of each label that is spread over all classes
        "rotation": 0.0,  # weight of the rotation-prediction loss, see rotation_views; 0: off
        "rotation_views": "all",  # all: each image at 0, 90, 180 and 270 degrees; quarter: at one of them
        "rotation_head": "features",  # input of the rotation head: the backbone's features, or the classifier's logits
        "dropblock_ramp": 0,  # steps over which the rate of backbone.dropblock rises from 0; 0: full rate at once
        "teacher": "",  # workdir whose pre-trained network this run also learns from (distillation)
        "distill_weight": 0.5,  # weight of the distillation loss; the label loss gets the rest of 1
        "temperature": 4.0,  # divides the teacher's and the student's logits in distillation
        "average": 0.0,  # decay of a moving average of the weights, which is then used; 0: off
        "optimizer": "adam",  # adam, sgd (Nesterov)
        "adam_eps": "after",  # eps is added after Adam's bias correction, or before it (PyTorch 0.4, TensorFlow 1)
        "lr": 1e-3,  # learning rate at the start
        "momentum": 0.9,  # of sgd
        "weight_decay": 0.0,  # added to the gradient, as in PyTorch
        "decay": "cosine",  # of the learning rate: constant, cosine, steps
        "decay_every": 0,  # steps: length of a period, in optimiser steps
        "decay_factor": 0.5,  # steps: factor on the rate after each period
        "decay_floor": 0.0,  # lowest rate, as a fraction of the first one
        "decay_delay": 0,  # steps: optimiser steps before the first period
        "augment": {
            "shift": 0,  # random shift by up to this many pixels
            "pad": "edge",  # border of a shift: edge: repeated edge pixels; zero: black
            "jitter": 0.0,  # random brightness, contrast and saturation: factors within 1 +- this
            "flip": False,  # random horizontal flips
            "resized_crop": 0,  # side of a random resized crop, in pixels; 0: none
            "resized_crop_scale": (0.08, 1.0),  # range of the crop's area, as a fraction of the image's
        },
        "batch_norm": "train",  # train: batch statistics, and averages of them; batch: batch statistics alone
        "val_every": 500,  # steps between validations on few-shot tasks; 0: none
        "val_tasks": 600,  # tasks per validation
        "val_shot": placeholder(int),  # unset: meta.shot
        "val_query": placeholder(int),  # unset: meta.query
        "select": "best",  # checkpoint to start meta-training from: best (on validation), last
    })  # fmt: skip


def _inner() -> ConfigDict:
    return ConfigDict({
        "base_learner": "linear",  # linear (MTL's), cosine, prototypes, ridge, logistic
        "steps": 20,  # linear, cosine: updates in the inner loop
        "lr": 0.1,  # learning rate β of the inner loop
        "first_order": False,  # treat inner gradients as constants in the meta-gradient
        "loss_scale": "mean",  # mean: mean over the support images; per_shot: their sum divided by K
        "adapt": "head",  # updated by the inner loop: head; last_block or all: that part of the backbone too
        "start": "learned",  # linear, cosine: start of each task's head: learned, zero, prototypes
        "head_init": "zero",  # of a learned start: zero, he, xavier
        "learn_lr": False,  # linear, cosine: meta-learn a rate for every inner step, starting at lr
        "ensemble": False,  # linear, cosine: sum the logits of all inner steps with meta-learned weights (E3BM)
        "distance": "euclidean",  # prototypes: euclidean (squared), cosine
        "l2": 1.0,  # ridge: λ at its start; logistic: 1 / C at its start, C as in scikit-learn; both are meta-learned
        "features": "plain",  # of the head: plain; l2: scaled to length 1; centered_l2: minus the support mean, then l2
        "remat": False,  # recompute activations instead of storing them, if the inner loop updates the backbone
    })  # fmt: skip


def _meta() -> ConfigDict:
    return ConfigDict({
        "way": 5,  # classes per task, N
        "shot": 1,  # support images per class, K
        "query": 15,  # query images per class, Q
        "tasks_per_step": 4,  # tasks per meta-batch
        "steps": 500,  # optimiser steps
        "learn": "ss",  # ss: SS and head; weights: all weights and head (fine-tuning); head; none: no meta-training
        "blocks": "all",  # blocks that learn and norm_affine apply to: all, last (Θ4)
        "per": "pair",  # a scale for each pair of channels (SS), or for each output, norm layers included (SSF)
        "scale": "all",  # convolutions with SS: all, main (no shortcuts)
        "shift": "bias",  # where SS shifts: bias: convolutions that have a bias; nowhere
        "norm_affine": False,  # also meta-learn batch norm's scale and offset in these blocks
        "batch_norm": "running",  # statistics: running, batch, train
        "optimizer": "adam",  # adam, sgd (Nesterov)
        "adam_eps": "after",  # eps is added after Adam's bias correction, or before it (PyTorch 0.4, TensorFlow 1)
        "lr": 1e-3,  # learning rate of everything but the head
        "head_lr": 1e-3,  # learning rate of the head
        "momentum": 0.9,  # of sgd
        "weight_decay": 0.0,  # pulls SS towards no effect (scales to 1), everything else to 0
        "decay": "constant",  # as in pretrain: constant, cosine, steps
        "decay_every": 0,
        "decay_factor": 0.5,
        "decay_floor": 0.0,
        "decay_delay": 0,
        "val_every": 100,  # steps between validations; 0: none
        "val_tasks": 600,  # tasks per validation
        "val_shot": placeholder(int),  # unset: meta.shot
        "val_query": placeholder(int),  # unset: meta.query
        "select": "best",  # checkpoint to test: best (on validation), last
    })  # fmt: skip


def _hard_tasks() -> ConfigDict:
    return ConfigDict({
        "enabled": False,  # also train on tasks made of the classes that the network failed on
        "round": 10,  # meta-batches between rounds of hard tasks, whose failure classes are collected
        "extra": 8,  # K': hard tasks per round, in meta-batches of tasks_per_step
    })  # fmt: skip


def _evaluate() -> ConfigDict:
    return ConfigDict({
        "split": "test",  # train, val, test
        "num_tasks": 600,  # tasks of a test
        "way": placeholder(int),  # unset: meta.way
        "shot": placeholder(int),  # unset: meta.shot
        "query": 15,  # query images per class
        "seed": 1,  # of the test tasks; tasks on val always differ from those of validation
        "inner_steps": placeholder(int),  # unset: inner.steps
        "inner_lr": placeholder(float),  # unset: inner.lr
        "flips": False,  # add each support image's mirror image to the support set
        "crops": 0,  # random crops of each support image added to the support set
        "crop_area": 0.5,  # smallest area of such a crop, as a fraction of the image's
        "every_step": False,  # also report the accuracy after each inner step
    })  # fmt: skip


def _runtime() -> ConfigDict:
    return ConfigDict({
        "devices": 0,  # local devices to use; 0: all
        "chunk": 0,  # tasks per device processed at once; 0: as many as fit into memory_gb
        "memory_gb": 16.0,  # memory of a device; the need of a step is estimated from its shapes
        "steps_per_dispatch": 1,  # optimiser steps per device call; leave it at 1 on CPUs
        "dtype": "float32",  # of the backbone's computation: float32, bfloat16, auto (bfloat16 on accelerators)
        "deterministic": False,  # use GPU kernels that sum in a fixed order, for bit-identical runs
        "log_every": 20,  # steps between lines of the log
        "checkpoint_every": 500,  # steps between checkpoints
        "keep": 2,  # latest checkpoints to keep, besides the best
        "skip_nonfinite": 0,  # non-finite steps to skip per phase; one more stops the run
        "embed_batch": 256,  # images embedded at once in evaluation
        "cache_trunk": False,  # keep on disk what all below the last block computes of an image, where that is frozen
        "task_chunk": 1000,  # tasks of a compiled call in evaluation; at most 2 if each task has its own features
    })  # fmt: skip
