"""One small whole sample of every file that is read, and its reader."""

import csv
import hashlib
import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export
from mtl_jax.configs import glyphs
from PIL import Image

from mtl_jax import config, export, frozen_episodes
from mtl_jax.classify.classifier import FewShotClassifier
from mtl_jax.data import Split, decode
from mtl_jax.data.cache import reader
from mtl_jax.data.sources import find, splitting
from mtl_jax.data.transforms import Transform
from mtl_jax.evaluation import Tasks
from mtl_jax.reference_weights import file_formats, load_network, load_reference_weights, networks, pth
from mtl_jax.solved_learners import Ridge
from mtl_jax.workdir import writers
from mtl_jax.workdir.checkpoint import Checkpoints
from tests import reference_formats

SIDE, EACH, CLASSES = 32, 3, 2
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (CLASSES * EACH, SIDE, SIDE, 3), np.uint8)
LABELS = np.repeat(np.arange(CLASSES), EACH)
ARRAYS = {"conv": RNG.normal(size=(3, 3, 2, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)}


class Sample(NamedTuple):
    """make: writes it into a folder. read: its content. files: which of them are damaged.

    sealed: a digest or a check sum covers all of its content, so that no other content may be read from it.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    files: str
    sealed: bool = False


def encoded(kind: str, pixels: np.ndarray) -> bytes:
    """An image file of a kind that Pillow knows, or a HEIC."""
    file = io.BytesIO()
    if kind == "HEIC":
        import pillow_heif

        pillow_heif.from_pillow(Image.fromarray(pixels)).save(file)
        return file.getvalue()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _write(name: str, content: Callable[[], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content()) and None


def _pickled(content: Any, protocol: int = 2) -> Callable[[], bytes]:
    return lambda: pickle.dumps(content, protocol)


def _npz(save: Callable[..., None]) -> Callable[[Path], None]:
    return lambda folder: save(folder / "test.npz", images=PIXELS, labels=LABELS)


def _tiered(folder: Path) -> None:
    pngs = [np.frombuffer(encoded("PNG", image), np.uint8) for image in PIXELS]
    (folder / "test_images_png.pkl").write_bytes(pickle.dumps(pngs, 2))
    (folder / "test_labels.pkl").write_bytes(pickle.dumps({"label_specific": LABELS.tolist()}, 2))


def _npy_pair(folder: Path) -> None:
    np.save(folder / "test_images.npy", PIXELS)
    np.save(folder / "test_labels.npy", LABELS)


def _cifar(folder: Path) -> None:
    place = folder / "cifar-100-python"
    place.mkdir()
    names = [f"class{number:02d}" for number in range(4)]
    (place / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))
    for batch in ("train", "test"):
        data = RNG.integers(0, 256, (4, 3072), np.uint8)
        held = {"data": data, "fine_labels": list(range(4)), "filenames": [f"{number}.png" for number in range(4)]}
        (place / batch).write_bytes(pickle.dumps(held, 2))


def _members() -> dict[str, bytes]:
    return {f"test/c{LABELS[i]}/{i}.png": encoded("PNG", image) for i, image in enumerate(PIXELS)}


def _tar(mode: str, name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with tarfile.open(folder / name, mode) as tar:
            for file, data in _members().items():
                member = tarfile.TarInfo(file)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    return make


def _zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file, data in _members().items():
            archive.writestr(file, data)


def _csv(folder: Path) -> None:
    (folder / "images").mkdir()
    with open(folder / "test.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filename", "label"])
        for i, image in enumerate(PIXELS):
            (folder / "images" / f"{i}.png").write_bytes(encoded("PNG", image))
            rows.writerow([f"{i}.png", f"class {LABELS[i]}"])


def _images(folder: Path, names: Sequence[str]) -> None:
    for name, image in zip(names, PIXELS, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded("PNG", image))


def _tables(encoding: str, split: str) -> Callable[[Path], None]:
    """FEAT's images/ with split/*.csv, or one labels.csv with a column of splits."""

    def make(folder: Path) -> None:
        names = [f"images/{i}.png" for i in range(len(PIXELS))]
        _images(folder, names)
        rows = [f"{i};{split};Ä{label};images\\{i}.png" for i, label in enumerate(LABELS)]
        file = folder / ("labels.csv" if split else "split/Test.csv")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes("\r\n".join([f";{'split' if split else 'x'};label;filename", *rows]).encode(encoding))

    return make


def _closer_look(folder: Path) -> None:
    names = [f"images/{i}.png" for i in range(len(PIXELS))]
    _images(folder, names)
    held = {"label_names": ["a", "b"], "image_names": [f"/home/x/{n}" for n in names], "image_labels": LABELS.tolist()}
    (folder / "novel.json").write_text(json.dumps(held))


def _cub(folder: Path) -> None:
    names = [f"00{label + 1}.B/{i}.png" for i, label in enumerate(LABELS)]
    _images(folder / "images", names)
    (folder / "images.txt").write_text("".join(f"{i} {name}\n" for i, name in enumerate(names)))
    (folder / "image_class_labels.txt").write_text("".join(f"{i} {label}\n" for i, label in enumerate(LABELS)))
    (folder / "classes.txt").write_text("0 001.B\n1 002.B\n")


def _tiny(folder: Path) -> None:
    names = [f"train/n0000000{label}/images/{i}.JPEG" for i, label in enumerate(LABELS[:-1])]
    _images(folder, [*names, "val/images/v.JPEG"])
    (folder / "val" / "val_annotations.txt").write_text("v.JPEG\tn00000001\t0\t0\t9\t9\n")


def _hdf5(form: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        import h5py

        with h5py.File(folder / "test_data.hdf5", "w") as file:
            group = file.create_group("datasets")
            for label in range(CLASSES):
                held = PIXELS[label == LABELS]
                if form == "encoded":
                    blobs = group.create_dataset(f"c{label}", (EACH,), dtype=h5py.vlen_dtype(np.uint8))
                    for i, image in enumerate(held):
                        blobs[i] = np.frombuffer(encoded("PNG", image), np.uint8)
                else:
                    group.create_dataset(f"c{label}", data=held, compression="gzip" if form == "gzip" else None)
        (folder / "test_labels.json").write_text(json.dumps([f"c{label}" for label in range(CLASSES)]))

    return make


def _list_files(folder: Path) -> None:
    for split, encoding, classes in (("Train", "utf-16", "ab"), ("valid", "cp1252", "cÄ"), ("test", "utf-8-sig", "eé")):
        (folder / f"{split}.txt").write_bytes("\r\n".join(classes).encode(encoding))


def _folders(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for i, image in enumerate(PIXELS):
            place = folder / "test" / f"c{LABELS[i]}"
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{i}.{kind.lower()}").write_bytes(encoded(kind, image))

    return make


def _split() -> Split:
    digests = RNG.integers(0, 256, (len(LABELS), 16), np.uint8)
    names = np.array([f"{i}.png".encode() for i in range(len(LABELS))])
    counts = np.full(CLASSES, EACH, np.int32)
    return Split("test", PIXELS, LABELS.astype(np.int32), ("a", "b"), counts, names, digests)


def _episodes(name: str) -> Callable[[Path], None]:
    tasks = Tasks(np.array([[[0], [3]], [[4], [1]]]), np.array([[[1, 2], [4, 5]], [[3, 5], [0, 2]]]))
    frozen = frozen_episodes.freeze(_split(), tasks, dataset="folder", fingerprint="ab", seed=1)
    return lambda folder: frozen_episodes.write(folder / name, frozen)


def _cache(folder: Path) -> None:
    facts = {"class_names": ["a", "b"], "counts": [EACH, EACH], "shape": [SIDE, SIDE, 3]}
    index = {"version": 1, "format": "x", "fingerprint": "ab", "skipped": [], "splits": {"test": facts}}
    (folder / "index.json").write_text(json.dumps(index))
    np.save(folder / "test.npy", PIXELS)
    np.save(folder / "test.names.npy", np.array([b"x.png"] * len(PIXELS)))
    np.save(folder / "test.digests.npy", np.zeros((len(PIXELS), 16), np.uint8))


def _classifier(folder: Path) -> None:
    classifier = FewShotClassifier(None, steps=2).fit(RNG.normal(size=(4, 5)).astype(np.float32), ["a", "b"] * 2)
    classifier.save(folder / "classifier.safetensors")


def _classifier_by_ridge(folder: Path) -> None:
    classifier = FewShotClassifier(base_learner=Ridge(2)).fit(np.eye(4, 5, dtype=np.float32), ["a", "b"] * 2)
    classifier.save(folder / "classifier.safetensors")


def _checkpoint(folder: Path) -> None:
    checkpoints = Checkpoints(folder)
    checkpoints.save(7, {"params": {"conv": {"kernel": ARRAYS["conv"]}}}, {"best": 0.5, "window": {}})
    checkpoints.mark_best(7, 0.5)


def _metrics(folder: Path) -> None:
    writer = writers.JsonlWriter(folder / "metrics.jsonl")
    for step in range(4):
        writer.write(step, {"meta/loss": 1.5 + step, "meta/accuracy": 0.25})
    writer.close()


def _pth(folder: Path) -> None:
    state = {"encoder.conv1.weight": np.ascontiguousarray(ARRAYS["conv"].transpose(3, 2, 0, 1))}
    file_formats.write_pth(folder / "w.pth", {"params": state})


def _save(content: Any, path: Path, zipped: bool = True) -> None:
    """A file of PyTorch, of nested dicts of arrays."""
    import torch

    tensors = jax.tree.map(torch.from_numpy, content)
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)


def _read_pth(folder: Path) -> Any:
    return pth.read(folder / "w.pth")


def _older_pth(folder: Path) -> None:
    _save({"a": ARRAYS["conv"]}, folder / "w.pth", zipped=False)


def _transformer() -> dict[str, np.ndarray]:
    """A small vision transformer's arrays in timm's keys."""
    width, hidden = 6, 8
    shapes = {"cls_token": (1, 1, width), "pos_embed": (1, 5, width), "patch_embed.proj.weight": (width, 3, 2, 2),
              "patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,)}  # fmt: skip
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width), "mlp.fc1": (hidden, width),
              "mlp.fc2": (width, hidden), "norm1": (width,), "norm2": (width,)}  # fmt: skip
    for name, shape in layers.items():
        shapes |= {f"blocks.0.{name}.weight": shape, f"blocks.0.{name}.bias": shape[:1]}
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _dinov3() -> dict[str, np.ndarray]:
    """A small DINOv3's arrays in Hugging Face's keys, without biases of queries and values."""
    width, hidden = 8, 6
    shapes = {"embeddings.cls_token": (1, 1, width), "embeddings.register_tokens": (1, 2, width),
              "embeddings.patch_embeddings.weight": (width, 3, 2, 2), "embeddings.patch_embeddings.bias": (width,),
              "norm.weight": (width,), "norm.bias": (width,), "layer.0.layer_scale1.lambda1": (width,),
              "layer.0.layer_scale2.lambda1": (width,)}  # fmt: skip
    shapes |= {f"layer.0.attention.{part}_proj.weight": (width, width) for part in "qkv"}
    layers = {"attention.o_proj": (width, width), "mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width),
              "mlp.down_proj": (width, hidden), "norm1": (width,), "norm2": (width,)}  # fmt: skip
    for name, shape in layers.items():
        shapes |= {f"layer.0.{name}.weight": shape, f"layer.0.{name}.bias": shape[:1]}
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _network(name: str, arrays_of: Callable[[], dict[str, np.ndarray]] = _transformer) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        arrays = arrays_of()
        if name.endswith(".pth"):
            _save({"state_dict": arrays}, folder / name)
        else:
            file_formats.write_safetensors(folder / name, arrays, {"format": "pt"})

    return make


def _ours(folder: Path) -> None:
    _network("theirs.safetensors")(folder)
    networks.write(load_network(folder / "theirs.safetensors", heads=2), folder / "ours.safetensors")


def _read_network(name: str) -> Callable[[Path], Any]:
    def read(folder: Path) -> Any:
        network = load_network(folder / name, heads=2)
        return networks.named(network.module), network.params, network.batch_stats, network.description

    return read


def _reference(folder: Path) -> None:
    state = reference_formats.state_dict(RNG)
    file_formats.write_pth(folder / "max_acc.pth", {"params": {name: np.float32(a) for name, a in state.items()}})


def _config(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config.to_json(glyphs.get_config()), indent=2))


def _lists(folder: Path) -> None:
    (folder / "lists.json").write_text(json.dumps({"train": ["a", "b"], "val": ["c"], "test": ["d"]}))


def read_data(folder: Path, fractions: Sequence[float] = (0.5, 0.25, 0.25)) -> Any:
    """All images of a data set, decoded, by split and class; `folder` may hold an archive instead."""
    archives = [path for path in folder.iterdir() if path.name.startswith("data.")]
    rule = splitting.Splitting(fractions)
    scratch = folder.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    contents = find.find("folder", str(archives[0] if archives else folder), rule).read(scratch)
    transform = Transform(0, 0, 0, True)
    return {
        (split, name): [decode.load(images, i, transform)[0] for i in range(len(images))]
        for split, held in contents.items()
        for name, images in held.items()
    }


def _read_as_test(folder: Path) -> Any:
    return read_data(folder, (0, 0, 1))


def _read_known(folder: Path) -> Any:
    """That all images read are among those of the sample: names, which no check sum covers, may be others."""
    known = {image.tobytes() for image in PIXELS}
    found = [image for images in read_data(folder).values() for image in images]
    if strange := [image.shape for image in found if image.tobytes() not in known]:
        raise AssertionError(f"pixels that were not in the archive: {strange}")
    return "known pixels alone"


def _read_cache(folder: Path) -> Any:
    dataset = reader.open_folder(folder, "folder")
    return {name: (s.class_names, s.images, s.labels, s.digests) for name, s in dataset.splits.items()}


def _read_classifier(folder: Path) -> Any:
    classifier = FewShotClassifier.load(folder / "classifier.safetensors")
    names = ("classes_", "coef_", "intercept_", "base_learner_", "learned_", "support_features_")
    return [getattr(classifier, name) for name in names if hasattr(classifier, name)]


def _read_config(folder: Path) -> Any:
    found = config.read(folder / "config.json")
    config.validate(found)
    return config.to_json(found)


def _read_checkpoint(folder: Path) -> Any:
    checkpoints = Checkpoints(folder)
    found = checkpoints.read(7)
    return found.items, found.metadata, checkpoints.best()


def _read_export(folder: Path) -> Any:
    return export.stablehlo.load(folder / "e.stablehlo").facts


def _export(folder: Path) -> None:
    function = jax_export.export(jax.jit(lambda x: x * 2))(jax.ShapeDtypeStruct((3,), np.float32))
    data = bytes(function.serialize())
    (folder / "e.stablehlo").write_bytes(data)
    facts = dict.fromkeys(export.stablehlo.FACTS, "x") | {"sha256": hashlib.sha256(data).hexdigest()}
    export.stablehlo.facts_path(folder / "e.stablehlo").write_text(json.dumps(facts))


KINDS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
HEIC = ("HEIC",) if find_spec("pillow_heif") else ()  # of an extra
HDF5 = ("arrays", "gzip", "encoded") if find_spec("h5py") else ()  # of an extra
PAIR = {"images": PIXELS, "labels": LABELS}
CACHED = {"image_data": PIXELS, "class_dict": {"a": [0, 1, 2], "b": [3, 4, 5]}}
SAMPLES = {
    "pickle (miniImageNet cache)": Sample(_write("mini-imagenet-cache-test.pkl", _pickled(CACHED)), read_data, "*"),
    "pickle (protocol 4)": Sample(_write("test.pkl", _pickled(PAIR, 4)), read_data, "*"),
    "pickle (tieredImageNet)": Sample(_tiered, read_data, "*.pkl"),
    "cifar-100-python": Sample(_cifar, read_data, "*/*"),
    "npz, stored": Sample(_npz(np.savez), read_data, "*", sealed=True),
    "npz, compressed": Sample(_npz(np.savez_compressed), read_data, "*", sealed=True),
    "npy": Sample(_npy_pair, read_data, "*.npy"),
    "tar": Sample(_tar("w", "data.tar"), read_data, "*"),
    "tar.gz": Sample(_tar("w:gz", "data.tar.gz"), read_data, "*", sealed=True),
    "zip": Sample(_zip, read_data, "*"),
    "zip, its images": Sample(_zip, _read_known, "*", sealed=True),
    "CSV": Sample(_csv, read_data, "test.csv"),
    "CSV, UTF-16": Sample(_tables("utf-16", ""), read_data, "split/*"),
    "CSV, Windows-1252": Sample(_tables("cp1252", ""), read_data, "split/*"),
    "CSV with splits": Sample(_tables("utf-8-sig", "TEST"), lambda folder: read_data(folder, ()), "labels.csv"),
    "JSON lists of images": Sample(_closer_look, read_data, "novel.json"),
    "CUB's lists": Sample(_cub, _read_as_test, "*.txt"),
    "Tiny-ImageNet's list": Sample(_tiny, _read_as_test, "val/*.txt"),
    **{f"HDF5, {form}": Sample(_hdf5(form), read_data, "*") for form in HDF5},
    **{kind: Sample(_folders(kind), read_data, "*/*/*", sealed=kind == "PNG") for kind in (*KINDS, *HEIC)},
    "lists of classes": Sample(_lists, lambda folder: splitting.read_lists(str(folder / "lists.json")), "*"),
    "lists of classes, texts": Sample(_list_files, lambda folder: splitting.read_lists(str(folder)), "*"),
    "cache": Sample(_cache, _read_cache, "*"),
    "config.json": Sample(_config, _read_config, "*"),
    "frozen episodes": Sample(
        _episodes("e.json"), lambda folder: frozen_episodes.read(folder / "e.json").tasks, "*", True
    ),
    "frozen episodes, gzip": Sample(
        _episodes("e.json.gz"), lambda folder: frozen_episodes.read(folder / "e.json.gz").tasks, "*", True
    ),
    "pth": Sample(_pth, _read_pth, "*", sealed=True),
    "pth, older": Sample(_older_pth, _read_pth, "*"),
    "network, pth": Sample(_network("n.pth"), _read_network("n.pth"), "*", sealed=True),
    "network, safetensors": Sample(_network("n.safetensors"), _read_network("n.safetensors"), "*"),
    "network, DINOv3": Sample(_network("n.safetensors", _dinov3), _read_network("n.safetensors"), "*"),
    "network, converted": Sample(_ours, _read_network("ours.safetensors"), "ours*"),
    "npy weights": Sample(
        lambda folder: file_formats.write_npy(folder / "w.npy", ARRAYS),
        lambda folder: file_formats.read_npy(folder / "w.npy"), "*",
    ),
    "safetensors": Sample(
        lambda folder: file_formats.write_safetensors(folder / "w.safetensors", ARRAYS, {"a": "b"}),
        lambda folder: file_formats.read_safetensors(folder / "w.safetensors"), "*",
    ),
    "reference weights": Sample(
        _reference, lambda folder: load_reference_weights(folder / "max_acc.pth"), "*", True,
    ),
    "classifier": Sample(_classifier, _read_classifier, "*"),
    "classifier with a base-learner": Sample(_classifier_by_ridge, _read_classifier, "*"),
    "checkpoint": Sample(_checkpoint, _read_checkpoint, "**/*", sealed=True),
    "metrics.jsonl": Sample(_metrics, lambda folder: list(writers.read_jsonl(folder / "metrics.jsonl")), "*"),
    "exported embedding": Sample(_export, _read_export, "*.stablehlo", sealed=True),
}  # fmt: skip
