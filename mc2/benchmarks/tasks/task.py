"""What a benchmark asks of a data set: images, texts per language, and how to score their embeddings.

A `Task` states what to encode and scores what was encoded; the engine encodes. So one pass over images and texts serves every language, every protocol and
every task that shares the images, and a task is plain CPU code without a model.

Shapes: N images, T texts of one language, C rows that are kept of them, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from mc2 import storage
from mc2.benchmarks import metrics
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


def sampled(keys: Sequence[str], num_images: int) -> NDArray[np.int64]:
    """Positions of a fixed random part of the keys, ascending; all of them if there are no more. A key's luck depends on nothing but the key."""
    chosen = set(storage.keyed_order(0, "benchmarks/sample", 0, keys)[:num_images])
    return np.array([index for index, key in enumerate(keys) if key in chosen], dtype=np.int64)


def sample_suffix(num_images: int, num_all: int) -> str:
    """What the name of a protocol says of a part of the images; "" for all of them."""
    return f"-{num_images}-of-{num_all}-images" if num_images < num_all else ""


def share_score(
    protocol: str, k: int, metric: str, rank_Q: Tensor, num_candidates: int, clusters: NDArray[np.int64] | None = None
) -> Score:
    """The share of queries whose best positive is among the first k, with the outcome of each."""
    outcomes = (rank_Q < k).float().cpu().numpy()
    return Score(protocol, metric, metrics.share_within(rank_Q, k), len(rank_Q), num_candidates, outcomes, clusters=clusters)


class Task(ABC):
    """One benchmark. `groups` maps some languages to a group ("seen", "unseen") whose mean is reported too."""

    def __init__(self, name: str, image_set: ImageSet, languages: Sequence[str], groups: Mapping[str, str]) -> None:
        self.name, self.image_set, self.languages, self.groups = name, image_set, languages, groups

    def sample(self, num_images: int) -> Task:
        """The same task on a fixed random part of its images (`sampled`), with "-<n>-of-<all>-images" in the names of its protocols.

        Errors: ValueError where a task has no such form.
        """
        raise ValueError(f"benchmarks.num_images: found {num_images}, but the task {self.name} cannot be cut; leave num_images out")

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
    correct_NK: NDArray[np.bool_],
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
        "correct": correct_NK.reshape(-1),
        "truth": pa.array(truth, pa.string()).take(pa.array(np.arange(len(keys)).repeat(num_ranks))),
    }
    return pa.table(
        {name: pa.array(column).cast(PREDICTIONS_SCHEMA.field(name).type) for name, column in columns.items()}, PREDICTIONS_SCHEMA
    )
