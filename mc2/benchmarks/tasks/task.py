"""What a benchmark asks of a data set: images, texts per language, and how to score their embeddings.

A `Task` states what to encode and scores what was encoded; the engine encodes. So one pass over images and texts serves every language, every protocol and
every task that shares the images, and a task is plain CPU code without a model.

Shapes: N images, T texts of one language, C rows that are kept of them, D embedding.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Self, final

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mc2 import storage
from mc2.benchmarks.results import Score

# The first answers of the classifier, one row per (image, rank): what a report shows and what an error is read from.
PREDICTIONS_SCHEMA = pa.schema(
    [
        ("task", pa.string()),
        ("language", pa.string()),
        ("key", pa.string()),
        ("rank", pa.int32()),
        ("class", pa.int32()),
        ("name", pa.string()),
        ("score", pa.float32()),
        ("correct", pa.bool_()),
        ("truth", pa.string()),  # what would be right, in the language's words
    ]
)


class ImageSet(ABC):
    """Images that several tasks may share: two sets with the same `identity` hold the same files in the same order and are encoded once."""

    identity: str
    keys: Sequence[str]  # unique

    @abstractmethod
    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """The encoded image files number `start` to `stop` (not included), in the order of `keys`."""


@final
class ImagePart(ImageSet):
    """Some images of a set, by their positions in it, ascending."""

    def __init__(self, whole: ImageSet, index: NDArray[np.int64]) -> None:
        self.whole, self.index = whole, index
        self.keys = [whole.keys[i] for i in index]
        self.identity = storage.fingerprint([whole.identity, index.tolist()])

    def read(self, start: int, stop: int) -> Iterator[bytes]:
        """Runs of neighbours are read together."""
        index = self.index[start:stop]
        for run in np.split(index, np.flatnonzero(np.diff(index) != 1) + 1):
            if len(run):
                yield from self.whole.read(int(run[0]), int(run[-1]) + 1)


class Task(ABC):
    """One benchmark. `groups` maps some languages to a group ("seen", "unseen") whose mean is reported too.

    `suffix` ends the names of the protocols: it says of how many images they speak where these are not all.
    """

    def __init__(self, name: str, image_set: ImageSet, languages: Sequence[str], groups: Mapping[str, str]) -> None:
        self.name, self.image_set, self.languages, self.groups = name, image_set, languages, groups
        self.suffix = ""

    def sample(self, num_images: int) -> Task:
        """The same task on a fixed random part of its images, with "-<n>-of-<all>-images" in the names of its protocols.

        Errors: ValueError where a task has no such form, or a language is left without an image.
        """
        raise ValueError(f"benchmarks.num_images: found {num_images}, but the task {self.name} cannot be cut; leave num_images out")

    def part(self, num_images: int) -> tuple[Self, NDArray[np.int64]]:
        """For `sample`: a copy with fewer images, whose labels are still to be cut, and the positions of these images, ascending.

        An image's luck depends on nothing but its key.
        """
        keys, part = self.image_set.keys, copy.copy(self)
        chosen = set(storage.keyed_order(0, "benchmarks/sample", 0, keys)[:num_images])
        index = np.array([position for position, key in enumerate(keys) if key in chosen], dtype=np.int64)
        if len(index) < len(keys):
            part.suffix, part.image_set = f"-{len(index)}-of-{len(keys)}-images", ImagePart(self.image_set, index)
        return part, index

    def without_image(self, language: str) -> ValueError:
        """The error of a part in which nothing of a language can be scored."""
        return ValueError(f"{self.name}: a part of {len(self.image_set.keys)} images has none of language {language!r}; raise num_images")

    @abstractmethod
    def texts(self, language: str) -> Sequence[str]:
        """The texts that the language's protocols need, none twice."""

    def condense(self, language: str, text_TD: Tensor) -> Tensor:  # noqa: ARG002  (for those that override it)
        """What scoring needs (C, D) of the embeddings of `texts(language)`: this is kept and cached. Here: all of it."""
        return text_TD

    @abstractmethod
    def score(self, language: str, image_ND: Tensor, text_CD: Tensor) -> list[Score]:
        """Every protocol and metric of one language, from the embeddings of `image_set.keys` and what `condense` kept of the texts."""

    @abstractmethod
    def predictions(self, language: str, image_ND: Tensor, text_CD: Tensor, num_names: int) -> pa.Table:
        """The `num_names` best answers for each image (PREDICTIONS_SCHEMA)."""


def predictions_table(
    task: str,
    language: str,
    keys: Sequence[str],
    classes: NDArray[np.int64],
    names: Sequence[str],
    order_NK: NDArray[np.int64],
    score_NK: Tensor,
    correct_NK: ArrayLike,
    truth: Sequence[str],
) -> pa.Table:
    """PREDICTIONS_SCHEMA: K answers for each of N images, nearest first; `order_NK` are positions in `classes` and `names`; `truth` has N names."""
    position, num_ranks = order_NK.reshape(-1), order_NK.shape[1]
    columns = {
        "task": [task] * len(position),
        "language": [language] * len(position),
        "key": pa.array(keys, pa.string()).take(pa.array(np.arange(len(keys)).repeat(num_ranks))),
        "rank": np.tile(np.arange(num_ranks), len(keys)),
        "class": classes[position],
        "name": pa.array(names, pa.string()).take(pa.array(position)),
        "score": score_NK.float().cpu().numpy().reshape(-1),
        "correct": np.asarray(correct_NK, dtype=bool).reshape(-1),
        "truth": pa.array(truth, pa.string()).take(pa.array(np.arange(len(keys)).repeat(num_ranks))),
    }
    return pa.table(
        {name: pa.array(column).cast(PREDICTIONS_SCHEMA.field(name).type) for name, column in columns.items()}, PREDICTIONS_SCHEMA
    )
