"""Writes one small set of images in every layout that people have CIFAR-100's few-shot sets in; for tests."""

import csv
import io
import pickle
from pathlib import Path

import numpy as np
from PIL import Image

from mtl_jax.data import facts

IMAGES = 6  # a class
NAMES = facts.cifar100_names()


def pixels(seed: int = 0, each: int = IMAGES) -> np.ndarray:
    """Returns uint8 [100, each, 32, 32, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (100, each, 32, 32, 3), np.uint8)


def png(image: np.ndarray, **options) -> bytes:
    """Returns an image as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", **options)
    return file.getvalue()


def splits(name: str) -> dict[str, list[int]]:
    """Returns split -> fine labels."""
    return {split: [NAMES.index(c) for c in classes] for split, classes in facts.class_splits(name).items()}


def class_folders(root: Path, images: np.ndarray, name: str) -> None:
    for split, labels in splits(name).items():
        for label in labels:
            folder = root / split / NAMES[label]
            folder.mkdir(parents=True)
            for i, image in enumerate(images[label]):
                (folder / f"{(i * 5) % 7}.png").write_bytes(png(image))


def flat_classes(root: Path, images: np.ndarray, name: str) -> None:
    for label, class_name in enumerate(NAMES):
        folder = root / class_name
        folder.mkdir(parents=True)
        for i, image in enumerate(images[label]):
            (folder / f"{i}.png").write_bytes(png(image))


def csv_images(root: Path, images: np.ndarray, name: str) -> None:
    (root / "images").mkdir(parents=True)
    for split, labels in splits(name).items():
        with open(root / f"{split}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filename", "label"])
            for i in range(images.shape[1]):
                for label in labels:
                    (root / "images" / f"{label}_{i}.png").write_bytes(png(images[label, i]))
                    rows.writerow([f"{label}_{i}.png", NAMES[label]])


def interleaved(images: np.ndarray, labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images of some classes mixed [N, 32, 32, 3], and their labels [N]."""
    each = images.shape[1]
    order = np.random.default_rng(len(labels)).permutation(len(labels) * each)
    return images[labels].reshape(-1, 32, 32, 3)[order], np.repeat(labels, each)[order]


def label_pickles(root: Path, images: np.ndarray, name: str) -> None:
    root.mkdir()
    for split, labels in splits(name).items():
        data, targets = interleaved(images, labels)
        held = {"data": data, "labels": targets.tolist()}
        (root / f"FC100_{split}.pickle").write_bytes(pickle.dumps(held, protocol=2))


def class_dict_pickles(root: Path, images: np.ndarray, name: str) -> None:
    root.mkdir()
    for split, labels in splits(name).items():
        data, targets = interleaved(images, labels)
        rows = {NAMES[label]: np.flatnonzero(targets == label).tolist() for label in labels}
        held = {"image_data": data, "class_dict": rows}
        (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(held, protocol=4))


def png_pickles(root: Path, images: np.ndarray, name: str) -> None:
    root.mkdir()
    for split, labels in splits(name).items():
        data, targets = interleaved(images, labels)
        encoded = [np.frombuffer(png(image), np.uint8)[:, None] for image in data]
        local = np.searchsorted(labels, targets)
        facts_ = {"label_specific": local, "label_general": local * 0, "label_specific_str": [NAMES[c] for c in labels]}
        (root / f"{split}_images_png.pkl").write_bytes(pickle.dumps(encoded, protocol=2))
        (root / f"{split}_labels.pkl").write_bytes(pickle.dumps(facts_, protocol=2))


def category_pickles(root: Path, images: np.ndarray, name: str) -> None:
    """The pickles of train images that are not the training split lie beside, as they do in the wild."""
    root.mkdir()
    for split, labels in splits(name).items():
        data, targets = interleaved(images, labels)
        held = {"data": data, "labels": targets.tolist(), "catname2label": {NAMES[label]: label for label in labels}}
        part = "train_phase_train" if split == "train" else split
        (root / f"miniImageNet_category_split_{part}.pickle").write_bytes(pickle.dumps(held, protocol=2))
    for other in ("val", "test"):
        (root / f"miniImageNet_category_split_train_phase_{other}.pickle").write_bytes(b"not read")


def npz_with_label_pickles(root: Path, images: np.ndarray, name: str) -> None:
    root.mkdir()
    for split, labels in splits(name).items():
        data, targets = interleaved(images, labels)
        np.savez_compressed(root / f"{split}_images.npz", images=data)
        held = {"label_specific": np.searchsorted(labels, targets), "label_specific_str": [NAMES[c] for c in labels]}
        (root / f"{split}_labels.pkl").write_bytes(pickle.dumps(held, protocol=2))


def npz(root: Path, images: np.ndarray, name: str, save=np.savez) -> None:
    root.mkdir()
    for split, labels in splits(name).items():
        data, targets = interleaved(images, labels)
        save(root / f"{split}.npz", images=data, labels=targets)


def compressed_npz(root: Path, images: np.ndarray, name: str) -> None:
    npz(root, images, name, np.savez_compressed)


def npy(root: Path, images: np.ndarray, name: str) -> None:
    root.mkdir()
    for split, labels in splits(name).items():
        data, targets = interleaved(images, labels)
        np.save(root / f"{split}_images.npy", data)
        np.save(root / f"{split}_labels.npy", np.asarray(NAMES)[targets])


def cifar_python(root: Path, images: np.ndarray, name: str) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for batch, part in (("train", slice(0, -1)), ("test", slice(-1, None))):
        mixed = images[:, part]
        order = np.random.default_rng(1).permutation(mixed.shape[0] * mixed.shape[1])
        data = mixed.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2).reshape(-1, 3072)[order]
        labels = np.repeat(np.arange(100), mixed.shape[1])[order]
        names = [f"{i}.png".encode() for i in order]
        held = {b"data": data, b"fine_labels": labels.tolist(), b"coarse_labels": [], b"filenames": names}
        (folder / batch).write_bytes(pickle.dumps(held, protocol=2))
    meta = {b"fine_label_names": [name.encode() for name in NAMES], b"coarse_label_names": []}
    (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))


LAYOUTS = {
    "class folders": class_folders,
    "one folder of classes": flat_classes,
    "CSV": csv_images,
    "data and labels": label_pickles,
    "class_dict": class_dict_pickles,
    "encoded PNGs": png_pickles,
    "category split": category_pickles,
    "npz and labels": npz_with_label_pickles,
    "npz": npz,
    "compressed npz": compressed_npz,
    "npy": npy,
    "cifar-100-python": cifar_python,
}
