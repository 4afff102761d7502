"""Weights in the two implementations' own formats: arbitrary, nothing at its initial value, as NumPy arrays."""


def state_dict(rng, widths=(4, 8, 16, 32), way=5, meta=True):
    """The PyTorch implementation's state dict of its network with these channels; `meta`: of a meta-training file."""
    s = {}

    def add_conv(name, out, inputs, size, bias=False):
        s[f"{name}.weight"] = rng.normal(size=(out, inputs, size, size)) * (2 / (inputs * size * size)) ** 0.5
        s[f"{name}.mtl_weight"] = rng.uniform(0.7, 1.3, (out, inputs, 1, 1))
        if bias:
            s[f"{name}.bias"] = rng.normal(size=out) * 0.1
            s[f"{name}.mtl_bias"] = rng.normal(size=out) * 0.1

    def add_norm(name, width, largest=1.5):
        s[f"{name}.weight"] = rng.uniform(largest / 3, largest, width)
        s[f"{name}.bias"] = rng.normal(size=width) * 0.1
        s[f"{name}.running_mean"] = rng.normal(size=width) * 0.1
        s[f"{name}.running_var"] = rng.uniform(1.0, 3.0, width)
        s[f"{name}.num_batches_tracked"] = rng.integers(1, 100, ())

    stem, *stages = widths
    add_conv("conv1", stem, 3, 3, bias=True)
    add_norm("bn1", stem)
    inputs = stem
    for layer, width in enumerate(stages, 1):
        for block in range(4):
            name = f"layer{layer}.{block}"
            add_conv(f"{name}.conv1", width, inputs, 3)
            add_norm(f"{name}.bn1", width)
            add_conv(f"{name}.conv2", width, width, 3)
            add_norm(f"{name}.bn2", width, largest=0.3)  # or the sums over twelve blocks would grow without bound
            if block == 0:
                add_conv(f"{name}.downsample.0", width, inputs, 1)
                add_norm(f"{name}.downsample.1", width, largest=1.0)
            inputs = width
    if not meta:
        return {key: value for key, value in s.items() if ".mtl_" not in key}
    s = {f"encoder.{key}": value for key, value in s.items()}
    kernel, bias = rng.normal(size=(way, inputs)) * (2 / inputs) ** 0.5, rng.normal(size=way) * 0.1
    return {**s, "base_learner.fc1_w": kernel, "base_learner.fc1_b": bias,
            "base_learner.vars.0": kernel, "base_learner.vars.1": bias}  # fmt: skip


def resnet12(rng, widths=(3, 8, 16, 32), classes=None):
    """RFS' state dict of the ResNet-12 with these channels; with `classes` its classifier, too."""
    s, inputs = {}, 3
    for layer, width in enumerate(widths, 1):
        sizes = {"conv1": (inputs, 3), "conv2": (width, 3), "conv3": (width, 3), "downsample.0": (inputs, 1)}
        for (name, (into, size)), norm in zip(sizes.items(), ("bn1", "bn2", "bn3", "downsample.1"), strict=True):
            kernel = rng.normal(size=(width, into, size, size)) * (2 / (into * size * size)) ** 0.5
            s[f"layer{layer}.0.{name}.weight"] = kernel
            place = f"layer{layer}.0.{norm}"
            s[f"{place}.weight"], s[f"{place}.bias"] = rng.uniform(0.5, 1.5, width), rng.normal(size=width) * 0.1
            s[f"{place}.running_mean"] = rng.normal(size=width) * 0.1
            s[f"{place}.running_var"] = rng.uniform(1.0, 3.0, width)
            s[f"{place}.num_batches_tracked"] = rng.integers(1, 100, ())
        inputs = width
    if classes:
        s |= {"classifier.weight": rng.normal(size=(classes, inputs)), "classifier.bias": rng.normal(size=classes)}
    return s


def dicts(rng, backbone, widths=(3, 6, 13, 26), way=5):
    """The TensorFlow implementation's three dicts of a resnet12 or resnet18 with these channels."""
    weights, ss = {}, {}

    def add(name, bias, size, inputs, out):
        weights[name] = rng.normal(size=(size, size, inputs, out)) * (2 / (inputs * size * size)) ** 0.5
        weights[bias] = rng.normal(size=out) * 0.1
        ss[name] = rng.uniform(0.7, 1.3, (1, 1, inputs, out))
        ss[bias] = rng.normal(size=out) * 0.1

    names = [(f"block{i}", width) for i, width in enumerate(widths, 1)]
    inputs, convolutions = 3, 3
    if backbone == "resnet18":
        add("block0_1_conv1", "block0_1_bias1", 7, 3, widths[0])
        names = [(f"{name}_{i}", width) for name, width in names for i in (1, 2)]
        inputs, convolutions = widths[0], 2
    for name, width in names:
        weights[f"{name}_conv_res"] = rng.normal(size=(1, 1, inputs, width)) * (1 / inputs) ** 0.5
        for i in range(1, convolutions + 1):
            add(f"{name}_conv{i}", f"{name}_bias{i}", 3, inputs if i == 1 else width, width)
        inputs = width
    weights |= {"w5": rng.normal(size=(inputs, 64)), "b5": rng.normal(size=64)}  # saved, used by nothing
    fc = {"w5": rng.normal(size=(inputs, way)) * 0.2, "b5": rng.normal(size=way) * 0.1}
    return {"weights": weights, "ss_weights": ss, "fc_weights": fc}
