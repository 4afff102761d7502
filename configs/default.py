"""Every key of a config, with its meaning and the project's default. The other configs change a few of them.

Defaults are the best that the project can do honestly: BN by its running averages (inductive), second-order
meta-gradients, 15 query images, selection on validation tasks only.
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
        "path": "",  # where the user's copy is; its format is found out by looking
        "image_size": 0,  # stored pixels (square); 0: as they are
        "resize": 0,  # shorter side before the centre crop to image_size; 0: image_size
        "crop": 0,  # centre crop on device, after augmentation; 0: none
        "channels": 0,  # 1 or 3; 0: as they are
        "mean": (0.5,),  # per channel, of images in 0..1
        "std": (0.5,),
        "rotations": False,  # training classes turned by 90, 180 and 270 degrees are classes of their own
        "fractions": (),  # of the classes for train, val and test, where they come without a split: (0.6, 0.2, 0.2)
        "lists": "",  # or which classes are in which split: a folder with {train,val,test}.txt, or a JSON file
        "split_seed": 0,  # which classes the fractions pick
        "convert": False,  # take 16-bit, CMYK, palette, alpha, EXIF-rotated and animated images, not refuse them
        "skip_corrupt": False,  # leave damaged images out instead of refusing them
        "allow": "",  # let through shared_classes, shared_images, repeated_images: any of these, with commas between
        "cache_dir": "",  # default: $MTL_JAX_CACHE, or the user's cache folder
        "device_budget_gb": 2.0,  # a split up to this size lives on the device, a larger one on the host
    })  # fmt: skip


def _backbone() -> ConfigDict:
    return ConfigDict({
        "name": "conv4",  # conv4, resnet12, resnet12_640, resnet18, resnet25
        "width": 1.0,  # factor on every channel count
        "norm": "batch",  # batch, layer, none
        "activation": placeholder(str),  # relu, leaky_relu, none; unset: the reference's
        "dropout": placeholder(float),  # rate, in pre-training only; unset: the reference's
        "dropblock": 0,  # resnet12_640: pixels of the squares that are dropped after blocks 3 and 4; 0: single pixels
        "conv_bias": placeholder(bool),  # biases on all convolutions or on none; unset: where the reference has them
        "norm_scale": True,  # batch norm's trained scale
        "norm_bias": True,  # and offset
        "norm_epsilon": 1e-5,  # batch norm's, as all of norm_...; with another norm leave them as here
        "norm_momentum": 0.9,
        "norm_unbiased": placeholder(bool),  # average the unbiased variance; unset: the reference's
        "resize": 0,  # resnet18 alone: TensorFlow 1's bilinear resize of its input, 224 in the reference; 0: none
    })  # fmt: skip


def _pretrain() -> ConfigDict:
    return ConfigDict({
        "init": "",  # a workdir or weight file to start from instead of pre-training
        "steps": 2000,
        "batch_size": 64,
        "drop_last": True,  # leave out an epoch's last, partial batch
        "shuffle": "epoch",  # a new order every epoch; once: the same order in all
        "hidden": 0,  # units of the classifier's hidden layer; 0: a linear classifier
        "classifier_init": "uniform",  # uniform: U(+-1/sqrt(fan_in)), PyTorch's; xavier: Xavier-uniform, biases 0
        "label_smoothing": 0.0,
        "rotation": 0.0,  # weight of telling by what angle an image was turned; 0: images are not turned
        "rotation_views": "all",  # all: a batch in all four angles; quarter: each image in one, at no cost
        "rotation_head": "features",  # what the angle is told from: features; logits, those of the classes
        "dropblock_ramp": 0,  # steps over which the rate of backbone.dropblock rises from 0; 0: the whole rate at once
        "teacher": "",  # a workdir whose pre-trained network this run's learns from, beside the labels
        "distill_weight": 0.5,  # of the teacher's part of the loss; the rest is the labels'
        "temperature": 4.0,  # that teacher's and student's logits are divided by
        "mixup": 0.0,  # α of the Beta distribution that images and labels are mixed by; 0: none
        "average": 0.0,  # decay of a moving average of the weights, which is the network then; 0: the last weights are
        "optimizer": "adam",  # adam, sgd (Nesterov)
        "adam_eps": "after",  # after the bias correction; before: as PyTorch 0.4 and TensorFlow 1 add it
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "decay": "cosine",  # constant, cosine, steps, restarts (cosine again and again)
        "decay_every": 0,  # steps, restarts: updates between them
        "decay_factor": 0.5,  # of the rate at each
        "decay_floor": 0.0,  # the least rate, as a fraction of the first; restarts: of each period's first
        "decay_delay": 0,  # steps: updates before the first period begins
        "augment": {
            "shift": 0,  # pixels
            "pad": "edge",  # what a shift moves in: edge, the edge's pixels again; zero, black
            "jitter": 0.0,  # of brightness, contrast and saturation: factors within 1 +- this
            "flip": False,  # left to right
            "resized_crop": 0,  # output pixels of a random resized crop; 0: none
            "resized_crop_scale": (0.08, 1.0),  # its area, as a fraction of the image's
        },
        "batch_norm": "train",  # train: batch statistics and averages; batch: batch statistics alone
        "val_every": 500,  # steps between validations by few-shot tasks; 0: none
        "val_tasks": 600,
        "val_shot": placeholder(int),  # unset: meta.shot
        "val_query": placeholder(int),  # unset: meta.query
        "select": "best",  # the checkpoint that meta-training starts from: best (on validation), last
    })  # fmt: skip


def _inner() -> ConfigDict:
    return ConfigDict({
        "steps": 20,
        "lr": 0.1,
        "first_order": False,
        "loss_scale": "mean",  # mean over support rows; per_shot: their sum divided by K
        "adapt": "head",  # head; last_block, all: the backbone's weights as well
        "head_init": "zero",  # zero, he, xavier
        "features": "plain",  # before the head: plain; l2; centered_l2: less the support set's mean, then l2
        "remat": False,  # recompute activations of inner steps that move the backbone
    })  # fmt: skip


def _meta() -> ConfigDict:
    return ConfigDict({
        "way": 5,
        "shot": 1,
        "query": 15,  # per class
        "tasks_per_step": 4,
        "steps": 500,
        "learn": "ss",  # ss and head; weights (fine-tuning) and head; head; none: no meta-training
        "blocks": "all",  # all, last (Θ4): the blocks that `learn` and `norm_affine` keep to
        "scale": "all",  # convolutions with SS: all, main (no shortcuts)
        "shift": "bias",  # bias: where a convolution has one; nowhere
        "norm_affine": False,  # meta-learn batch norm's scale and offset as well, in the same blocks
        "batch_norm": "running",  # running, batch, train
        "optimizer": "adam",  # adam, sgd (Nesterov)
        "adam_eps": "after",  # after the bias correction; before: as PyTorch 0.4 and TensorFlow 1 add it
        "lr": 1e-3,  # of all that is learned but the head
        "head_lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 0.0,  # pulls SS to where it changes nothing (scales to 1), all else to 0
        "decay": "constant",  # constant, cosine, steps, restarts
        "decay_every": 0,
        "decay_factor": 0.5,
        "decay_floor": 0.0,
        "decay_delay": 0,
        "val_every": 100,  # steps between validations; 0: none
        "val_tasks": 600,
        "val_shot": placeholder(int),  # unset: meta.shot
        "val_query": placeholder(int),  # unset: meta.query
        "select": "best",  # the checkpoint that is evaluated: best (on validation), last
    })  # fmt: skip


def _hard_tasks() -> ConfigDict:
    return ConfigDict({
        "enabled": False,
        "round": 10,  # meta-batches whose failure classes are pooled
        "extra": 8,  # K': tasks made of the pool after a round, in meta-batches of tasks_per_step
    })  # fmt: skip


def _evaluate() -> ConfigDict:
    return ConfigDict({
        "split": "test",
        "num_tasks": 600,
        "way": placeholder(int),  # unset: meta.way
        "shot": placeholder(int),  # unset: meta.shot
        "query": 15,
        "seed": 1,  # of the tasks, apart from `seed`; on val not those that training's validation has
        "inner_steps": placeholder(int),  # unset: inner.steps
        "inner_lr": placeholder(float),  # unset: inner.lr
        "flips": False,  # double the support set by its mirror images
        "crops": 0,  # random parts of every support image that join it in the support set
        "crop_area": 0.5,  # the least area of such a part, as a fraction of the image's
        "every_step": False,  # accuracy after each inner step as well
    })  # fmt: skip


def _runtime() -> ConfigDict:
    return ConfigDict({
        "devices": 0,  # local devices to use; 0: all
        "chunk": 0,  # tasks of a device whose activations are in memory at once; 0: as many as memory_gb holds
        "memory_gb": 16.0,  # of a device, for what a step needs by the estimate from its shapes
        "steps_per_dispatch": 1,  # optimiser steps in one call of the device; 1 on CPUs
        "dtype": "float32",  # of the backbone's computation: float32, bfloat16, auto
        "deterministic": False,  # GPU kernels that add up in a fixed order, so that the same run gives the same bytes
        "log_every": 20,  # steps
        "checkpoint_every": 500,  # steps
        "keep": 2,  # checkpoints kept, besides the best
        "skip_nonfinite": 0,  # steps of a phase that may be left out as not finite; one more stops the run
        "embed_batch": 256,  # images embedded at once in evaluation
        "task_chunk": 1000,  # tasks adapted at once in evaluation; under batch statistics 2 at most
    })  # fmt: skip
