# %% [markdown]
# # Sort photographs
#
# One folder per class with a few photographs in each, and a folder to sort. Put yours into `my_classes` and `unsorted`.
# Where there is no such folder, the next cell draws pictures of letters instead, so that everything below runs as it
# stands.

# %% Pictures to try it with, unless you have your own
from pathlib import Path

import numpy as np
from PIL import Image

from mtl_jax import FewShotClassifier, data

CLASSES, QUERY = Path("my_classes"), Path("unsorted")
if not CLASSES.exists():
    letters = data.load("glyphs").splits["test"]
    for number in (3, 9, 14, 21, 30):
        name = letters.class_names[number].replace("/", "-")
        for each, row in enumerate(np.flatnonzero(letters.labels == number)[:13]):
            file = (CLASSES / name if each < 3 else QUERY) / f"{name}_{each}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(letters.images[row].squeeze()).convert("RGB").resize((224, 224)).save(file)
print(*sorted(folder.name for folder in CLASSES.iterdir()), sep="\n")

# %% Fit: the network that comes with the package is fixed, only the head learns. It takes seconds.
classifier = FewShotClassifier.from_pretrained().fit_folder(CLASSES)

# %% Sort
files = sorted(path for path in QUERY.rglob("*") if path.is_file())
answers, probabilities = classifier.predict(files), classifier.predict_proba(files).max(1)
for file, answer, probability in list(zip(files, answers, probabilities, strict=True))[:10]:
    print(f"{file.name:40} {answer:30} {100 * probability:.0f} %")

# %% To measure accuracy, use labelled images: here the file's name begins with its class.
right = np.mean([file.name.startswith(answer) for file, answer in zip(files, answers, strict=True)])
chance = 1 / len(classifier.classes_)
print(f"{len(files)} images: {100 * right:.0f} % right by their file names, {100 * chance:.0f} % by guessing")

# %% Keep the fitted classifier as one small file
classifier.save("my_classifier.safetensors")
print(FewShotClassifier.load("my_classifier.safetensors").predict(files[:3]))
