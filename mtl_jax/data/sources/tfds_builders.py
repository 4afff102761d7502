"""TFDS builders of FC100 and CIFAR-FS that need no TensorFlow: they write ArrayRecord files, encoded by Pillow.

The official archive of CIFAR-100 is downloaded and its checksum compared, unless it (or the folder in it) is in the
manual directory. Importing this module registers both with TFDS:

    import mtl_jax.data.sources.tfds_builders
    tfds.data_source('fc100', split='train', data_dir=...)
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from mtl_jax.data import facts
from mtl_jax.data.source import Rows
from mtl_jax.data.sources import archives, cifar100, trees
from mtl_jax.errors import DataError, first_line

URL = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
SIZE = 169_001_437
SHA256 = "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}  # ours -> TFDS's


class _FewShotCifar(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Put cifar-100-python.tar.gz, or the folder cifar-100-python, into the directory."
    DESCRIPTION = ""
    CITATION = ""

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any) -> None:
        super().__init__(file_format=file_format, **kwargs)

    @tfds.core.utils.classproperty
    @classmethod
    def url_infos(cls) -> Mapping[str, Any]:
        """Returns the checksum of the official archive, which TFDS otherwise expects in a file beside this one."""
        return {URL: tfds.core.download.checksums.UrlInfo(SIZE, SHA256, "cifar-100-python.tar.gz")}

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=facts.cifar100_names()),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
            citation=self.CITATION,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        tree = _manual_tree(dl_manager) or archives.open_tree(str(dl_manager.download(URL)))
        classes = cifar100.read(tree, cifar100.find(tree))
        splits = facts.class_splits(self.name)
        return {SPLIT_NAMES[split]: self._generate_examples(classes, splits[split]) for split in splits}

    def _generate_examples(self, classes: Mapping[str, Rows], names: Sequence[str]) -> Iterator[tuple[str, dict]]:
        for name in names:
            images = classes[name]
            for i in range(len(images)):
                yield f"{name}/{i}", {"image": _png(images.read(i)), "label": name, "file_name": images.name(i)}


class Fc100(_FewShotCifar):
    """FC100: the 100 classes of CIFAR-100, 60 / 20 / 20 by super-class."""

    DESCRIPTION = (
        "FC100: CIFAR-100 split by super-class into 60, 20 and 20 classes of 600 images, for few-shot learning."
    )
    CITATION = (
        "@inproceedings{oreshkin2018tadam, title={TADAM: Task dependent adaptive metric for improved few-shot"
        " learning}, author={Oreshkin, Boris and Rodr{\\'i}guez L{\\'o}pez, Pau and Lacoste, Alexandre},"
        " booktitle={NeurIPS}, year={2018}}"
    )


class CifarFs(_FewShotCifar):
    """CIFAR-FS: the 100 classes of CIFAR-100, 64 / 16 / 20."""

    DESCRIPTION = "CIFAR-FS: CIFAR-100 split into 64, 16 and 20 classes of 600 images, for few-shot learning."
    CITATION = (
        "@inproceedings{bertinetto2019meta, title={Meta-learning with differentiable closed-form solvers},"
        " author={Bertinetto, Luca and Henriques, Jo{\\~a}o F. and Torr, Philip and Vedaldi, Andrea},"
        " booktitle={ICLR}, year={2019}}"
    )


BUILDERS = {"fc100": Fc100, "cifar_fs": CifarFs}


def _manual_tree(dl_manager: tfds.download.DownloadManager) -> trees.Tree | None:
    try:
        folder = dl_manager.manual_dir
    except AssertionError:  # there is no manual directory, or it is empty
        return None
    archive = folder / "cifar-100-python.tar.gz"
    tree = archives.open_tree(str(archive if archive.exists() else folder))
    return tree if cifar100.find(tree) is not None else None


def _png(pixels: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    file.seek(0)
    return file


def prepare(name: str, data_dir: str, manual_dir: str = "") -> str:
    """Prepares 'fc100' or 'cifar_fs' as ArrayRecord under `data_dir` and returns the folder.

    Args:
        name: of the data set.
        data_dir: where TFDS keeps its data sets; '' is TFDS's default.
        manual_dir: has cifar-100-python.tar.gz or the folder in it; '' downloads the official archive.

    Raises:
        DataError: the archive cannot be downloaded.
    """
    builder = BUILDERS[name](data_dir=data_dir or None)
    config = tfds.download.DownloadConfig(manual_dir=manual_dir or None)
    try:
        builder.download_and_prepare(download_config=config)
    except (OSError, tfds.core.download.DownloadError, NonMatchingChecksumError) as error:
        reason = first_line(error)
        raise DataError(
            f"{URL}: cannot be fetched ({reason}); download it yourself and give its folder as --manual-dir"
        ) from None
    return str(builder.data_path)
