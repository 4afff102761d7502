"""The classes and photographs of a page, held in memory, and the classifier's answers for the unsorted ones."""

import itertools
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mtl_jax.classify import FewShotClassifier
from mtl_jax.classify.folders import Support
from mtl_jax.data import transforms
from mtl_jax.data.transforms import Transform
from mtl_jax.demo_page import photograph
from mtl_jax.demo_page.photograph import MAX_NAME, Decoded, Photograph, file_name, in_one_line
from mtl_jax.errors import ConfigError, DataError, first_line

MAX_CLASSES, MAX_PHOTOGRAPHS = 100, 1000
UNSORTED = 0  # the place of a photograph that is in no class
SHOWN_CLASSES, SHOWN_NEAREST = 5, 3


class Album:
    """What a page shows. Several threads may use it at once.

    classes: the name of each, by number, in their order.
    photographs: by number.
    places: of each photograph, in their order: the number of its class, or `UNSORTED`.
    network: what the page calls the network.
    left_out: a line for each file of the support folder that is not shown, and why.
    """

    def __init__(self, classifier: FewShotClassifier, network: str) -> None:
        """An empty album, whose answers are those of `classifier`; its `embed` takes images."""
        self.classifier, self.network = classifier, network
        self.classes: dict[int, str] = {}
        self.photographs: dict[int, Photograph] = {}
        self.places: dict[int, int] = {}
        self.left_out: list[str] = []
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._fitted_on: list[tuple[int, str]] = []
        blank = np.zeros((256, 256, self.transform.channels or 3), np.uint8)
        self._embed(transforms.store(blank, self.transform))  # it compiles: better now than at the first drop

    def fill(self, support: Support) -> None:
        """Adds the photographs of class folders. Those that cannot be read are named in `left_out`.

        Raises:
          ConfigError: there are more than a page holds.
        """
        if len(support.files) > MAX_PHOTOGRAPHS or len(set(support.classes)) > MAX_CLASSES:
            raise ConfigError(f"--support: {len(support.files)} photographs of {len(set(support.classes))} classes; "
                              f"a page holds {MAX_PHOTOGRAPHS} of {MAX_CLASSES}: give fewer")  # fmt: skip
        self.left_out = list(support.left_out)
        place_of = {name: self.add_class(name) for name in dict.fromkeys(support.classes)}

        def read(file: Path) -> Decoded | DataError:
            try:
                return photograph.read(file, str(file), self.transform)
            except DataError as error:
                return error

        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for file, name, image in zip(support.files, support.classes, pool.map(read, support.files), strict=True):
                try:
                    if isinstance(image, DataError):
                        raise image
                    self._add(image, file_name(file.name), place_of[name])
                except DataError as error:
                    self.left_out.append(str(error))

    @property
    def transform(self) -> Transform:
        """How photographs are prepared for the network."""
        return self.classifier.image_transform

    def add_class(self, name: str) -> int:
        """Adds an empty class and returns its number. Raises DataError: the name is taken or empty, or too many."""
        with self._lock:
            if len(self.classes) >= MAX_CLASSES:
                raise DataError(f"There are {MAX_CLASSES} classes, the most that a page holds: remove one first.")
            number = next(self._numbers)
            self.rename(number, name)
            return number

    def rename(self, place: int, name: str) -> None:
        """Names a class. Raises DataError where the name is empty or another class has it."""
        name = in_one_line(name)
        if not name:
            raise DataError("A class needs a name.")
        with self._lock:
            if any(other == name and number != place for number, other in self.classes.items()):
                raise DataError(f"There is a class {name} already.")
            self.classes[place] = name

    def remove_class(self, place: int) -> None:
        """Removes a class with its photographs."""
        with self._lock:
            self.classes.pop(place, None)
            for number in [number for number, its in self.places.items() if its == place]:
                self.remove(number)

    def remove(self, number: int) -> None:
        """Removes a photograph."""
        with self._lock:
            self.places.pop(number, None)
            self.photographs.pop(number, None)

    def add(self, raw: bytes, name: str, place: int) -> int:
        """Adds the photograph that a file holds, and returns its number.

        Args:
          raw: the file's content.
          name: its name; folders before it are cut off.
          place: the number of a class, or `UNSORTED`.

        Raises:
          DataError: it is no image, or a damaged one, there is no such class, the photograph is there already, or the
            page holds no more.
        """
        name = file_name(name)
        self._check_room(place)
        return self._add(photograph.read(raw, name, self.transform), name, place)

    def move(self, number: int, place: int) -> None:
        """Moves a photograph into a class, or out of all. Raises DataError as `add`, and where there is no such one."""
        with self._lock:
            if number not in self.photographs:
                raise DataError("That photograph is gone: load the page again.")
            self._check_place(place)
            self._check_copy(self.photographs[number], place, without=number)
            self.places.pop(number)  # it comes last in its new place
            self.places[number] = place

    def state(self) -> dict[str, Any]:
        """All that the page shows, as plain JSON; see app.js."""
        with self._lock:
            answers, problem = self._answers()
            return {
                "network": self.network,
                "limits": {"photographs": MAX_PHOTOGRAPHS, "name": MAX_NAME},
                "left_out": self.left_out,
                "problem": problem,
                "is_calibrated": not answers or self.classifier.is_calibrated_,
                "classes": [
                    {"id": place, "name": name, "photographs": self._of(place)} for place, name in self.classes.items()
                ],
                "unsorted": [{**photo, "answer": answers.get(photo["id"])} for photo in self._of(UNSORTED)],
            }

    def _of(self, place: int) -> list[dict[str, Any]]:
        numbers = [number for number, its in self.places.items() if its == place]
        return [{"id": number, "name": self.photographs[number].name} for number in numbers]

    def _answers(self) -> tuple[dict[int, dict[str, Any]], str]:
        """An answer for each unsorted photograph, by number, and why there is none, if something went wrong."""
        queries = [number for number, place in self.places.items() if place == UNSORTED]
        support = [(number, self.classes[place]) for number, place in self.places.items() if place != UNSORTED]
        if not queries or len({name for _, name in support}) < 2:
            return {}, ""
        examples = np.stack([self.photographs[number].features for number, _ in support])
        features = np.stack([self.photographs[number].features for number in queries])
        try:
            if support != self._fitted_on:
                self._fitted_on = []
                self.classifier.fit(examples, [name for _, name in support])
                self._fitted_on = support
            probabilities = self.classifier.predict_proba(features)
            said = self.classifier.predict(features)
        except ValueError as error:  # MtlErrors are among them
            return {}, first_line(error)
        similarity = _unit(features) @ _unit(examples).T
        known = {self.photographs[number].digest for number, _ in support}
        return {
            number: {
                "class": str(said[row]),
                "probabilities": [
                    [str(self.classifier.classes_[c]), float(probabilities[row, c])]
                    for c in np.argsort(-probabilities[row], kind="stable")[:SHOWN_CLASSES]
                ],
                "nearest": [
                    {"id": support[i][0], "class": support[i][1], "name": self.photographs[support[i][0]].name}
                    for i in np.argsort(-similarity[row], kind="stable")[:SHOWN_NEAREST]
                ],
                "is_example": self.photographs[number].digest in known,
            }
            for row, number in enumerate(queries)
        }, ""

    def _embed(self, stored: np.ndarray) -> np.ndarray:
        embed: Any = self.classifier.embed
        return np.asarray(embed(stored[None])[0], np.float32)  # one at a time: one compilation

    def _add(self, image: Decoded, name: str, place: int) -> int:
        added = Photograph(name, image.digest, image.thumbnail, self._embed(image.stored))
        with self._lock:
            self._check_room(place)  # others may have been quicker
            self._check_copy(added, place)
            number = next(self._numbers)
            self.photographs[number] = added
            self.places[number] = place
            return number

    def _check_place(self, place: int) -> None:
        if place != UNSORTED and place not in self.classes:
            raise DataError("That class is gone: load the page again.")

    def _check_room(self, place: int) -> None:
        self._check_place(place)
        if len(self.photographs) >= MAX_PHOTOGRAPHS:
            raise DataError(f"There are {MAX_PHOTOGRAPHS} photographs, the most that a page holds: remove some first.")

    def _check_copy(self, added: Photograph, place: int, without: int | None = None) -> None:
        """Raises DataError for a second copy among the classes, where it would count twice, or among the unsorted."""
        for number, its in self.places.items():
            other = self.photographs[number]
            if number == without or other.digest != added.digest or (its == UNSORTED) != (place == UNSORTED):
                continue
            where = f"in class {self.classes[its]}" if its != UNSORTED else "below"
            raise DataError(f"{added.name}: the same photograph as {other.name}, which is {where} already")


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
