"""The TFDS builders work without TensorFlow and without a network, and what they write reads as any other format."""

import socket
import sys

import data_layouts
import numpy as np
import pytest

from mtl_jax import data
from mtl_jax.data import __main__ as program
from mtl_jax.errors import DataError

tfds = pytest.importorskip("tensorflow_datasets")

from mtl_jax.data.sources import tfds_builders  # noqa: E402


@pytest.fixture(autouse=True, scope="module")
def no_network():
    with pytest.MonkeyPatch.context() as patch:
        for kind, name in ((socket.socket, "connect"), (tfds.download.DownloadManager, "download")):
            patch.setattr(kind, name, lambda *args: pytest.fail("a test must not reach the network"))
        yield


@pytest.fixture(scope="module")
def prepared(no_network, tmp_path_factory):
    root = tmp_path_factory.mktemp("tfds")
    data_layouts.cifar_python(root / "manual", data_layouts.pixels(), "")
    for name in ("fc100", "cifar_fs"):
        assert program.main(["tfds", name, str(root / "data"), "--manual-dir", str(root / "manual")]) == 0
    return root


def load(root, name, **options):
    return data.load(name, str(root / "data"), cache_dir=str(root / "cache"), **options)


def test_no_tensorflow(prepared):
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("name", ["fc100", "cifar_fs"])
def test_same_as_cifar_python(name, prepared):
    found = load(prepared, f"tfds:{name}")
    expected = data.load(name, str(prepared / "manual"), cache_dir=str(prepared / "cache"))
    assert found.fingerprint == expected.fingerprint and found.format == "TFDS"
    for split in data.SPLITS:
        assert found.splits[split].class_names == expected.splits[split].class_names
        np.testing.assert_array_equal(found.splits[split].images, expected.splits[split].images)


def test_tfds_users_read_it_with_data_source(prepared):
    source = tfds.data_source("fc100", split="validation", data_dir=str(prepared / "data"), try_gcs=False)
    assert len(source) == 20 * data_layouts.IMAGES
    record = source[0]
    name = data_layouts.NAMES[record["label"]]
    assert name in tfds_builders.facts.class_splits("fc100")["val"]
    rows = data_layouts.pixels()[record["label"]]
    assert any(np.array_equal(record["image"], row) for row in rows)


def test_class_splits_by_lists_pool_the_splits(prepared):
    lists = {"train": ["apple", "bear"], "val": ["baby"], "test": ["bee"]}
    found = load(prepared, "tfds:fc100", lists=lists)
    assert {s: split.class_names for s, split in found.splits.items()} == {s: tuple(n) for s, n in lists.items()}
    assert found.splits["train"].counts.tolist() == [data_layouts.IMAGES] * 2


def test_the_folder_itself_can_be_the_path(prepared):
    found = data.load("tfds:fc100", str(prepared / "data/fc100/1.0.0"), cache_dir=str(prepared / "cache"))
    assert found.fingerprint == load(prepared, "tfds:fc100:1.0.0").fingerprint


class Digits(tfds.core.GeneratorBasedBuilder):
    """A data set whose splits share their classes, without class names."""

    VERSION = tfds.core.Version("2.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(8, 8, 1)), "label": tfds.features.Scalar(np.int64)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0), "test": self._generate_examples(1)}

    def _generate_examples(self, seed):
        rng = np.random.default_rng(seed)
        for i in range(20):
            image = data_layouts.io.BytesIO(data_layouts.png(rng.integers(0, 256, (8, 8), np.uint8)))
            yield f"{i}", {"image": image, "label": i % 5}


def test_splits_that_share_classes_need_lists(tmp_path):
    Digits(data_dir=str(tmp_path / "data"), file_format="array_record").download_and_prepare()
    with pytest.raises(DataError, match=r"digits/2\.0\.0: classes without a split; set data\.fractions"):
        load(tmp_path, "tfds:digits")
    found = load(tmp_path, "tfds:digits", fractions=(0.6, 0.2, 0.2))
    assert [len(found.splits[s].class_names) for s in data.SPLITS] == [3, 1, 1]
    assert found.splits["train"].counts.tolist() == [8, 8, 8]
    assert found.splits["train"].images.shape == (24, 8, 8, 1)


def test_what_is_not_there(tmp_path, prepared):
    with pytest.raises(
        DataError, match=r"fc100: no TFDS data set is prepared there; prepare it with: python -m mtl_jax"
    ):
        load(tmp_path, "tfds:fc100")
    with pytest.raises(DataError, match=r"mnist: no TFDS data set is prepared there; data\.path must be the data dir"):
        load(tmp_path, "tfds:mnist")


def test_other_formats_and_features_are_refused(prepared, tmp_path):
    import shutil

    place = tmp_path / "data" / "fc100" / "1.0.0"
    shutil.copytree(prepared / "data" / "fc100" / "1.0.0", place)
    info = place / "dataset_info.json"
    whole = info.read_text()
    info.write_text(whole.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(DataError, match=r"1\.0\.0: not in a random-access format \(.*\); prepare it with file_format="):
        load(tmp_path, "tfds:fc100")
    info.write_text(whole)
    features = place / "features.json"
    features.write_text(features.read_text().replace('"label"', '"target"'))
    with pytest.raises(DataError, match=r"1\.0\.0: has no feature 'label' but .*; image and label are needed"):
        load(tmp_path, "tfds:fc100")


def test_checksum_of_the_official_archive_is_known():
    info = tfds_builders.Fc100.url_infos[tfds_builders.URL]
    assert info.size == 169_001_437 and len(info.checksum) == 64 and info.filename == "cifar-100-python.tar.gz"


def test_archive_that_cannot_be_fetched(tmp_path, monkeypatch, capsys):
    def fails(self, url):
        raise ConnectionError("no route")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", fails)
    assert program.main(["tfds", "fc100", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cifar-100-python.tar.gz: cannot be fetched (no route); download it yourself" in error
