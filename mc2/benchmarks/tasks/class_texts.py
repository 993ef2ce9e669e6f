"""Class names of one language as texts, and zero-shot classifiers from their embeddings.

Shapes: N images, T texts, C classes, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc2.benchmarks import metrics

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ClassTexts:
    """What is encoded to tell the classes of one language apart. A class is known here by its position in `classes`: the ids that have a name, ascending.

    `texts` has none twice. `pairs` holds, for each protocol, rows of (text index, class position): a name can belong to several classes, and a class can have
    several names (synonyms) and prompts.
    """

    classes: IntArray
    first_names: tuple[str, ...]
    texts: tuple[str, ...]
    pairs: Mapping[str, IntArray]

    @classmethod
    def build(cls, names: Sequence[tuple[int, str]], prompts: Mapping[str, Sequence[str]]) -> ClassTexts:
        """From (class id, name) rows in any order, and the prompts of each protocol with one {} for the name. The texts of the first protocol come first."""
        first_name: dict[int, str] = {}
        for label, name in names:
            first_name.setdefault(label, name)
        classes = sorted(first_name)
        position = {label: index for index, label in enumerate(classes)}
        index_of: dict[str, int] = {}
        pairs = {
            protocol: np.array(
                [
                    (index_of.setdefault(prompt.replace("{}", name), len(index_of)), position[label])
                    for label, name in names
                    for prompt in own
                ],
                dtype=np.int64,
            )
            for protocol, own in prompts.items()
        }
        return cls(np.array(classes, dtype=np.int64), tuple(first_name[label] for label in classes), tuple(index_of), pairs)

    def classifier(self, protocol: str, text_TD: Tensor) -> Tensor:
        """The zero-shot classifier (C, D) of a protocol: prompts and synonyms weigh the same."""
        text, position = torch.from_numpy(self.pairs[protocol]).to(text_TD.device).unbind(1)
        return metrics.class_embeddings(text_TD[text], position, len(self.classes))

    def answers(self, label_pairs: IntArray) -> tuple[IntArray, IntArray]:
        """The images that have a right class here, ascending; and rows of (index in them, class position). From rows of (image, class id)."""
        position = np.searchsorted(self.classes, label_pairs[:, 1]).clip(max=len(self.classes) - 1)
        known = self.classes[position] == label_pairs[:, 1]
        images, row = np.unique(label_pairs[known, 0], return_inverse=True)
        return images, np.stack([row, position[known]], axis=1)

    def truth(self, pairs: IntArray) -> list[str]:
        """The name of the first right class of each image, from rows of (image, class position) in the order of the images."""
        _, first = np.unique(pairs[:, 0], return_index=True)
        return [self.first_names[position] for position in pairs[first, 1]]


def part_of_labels(label_pairs: IntArray, index: IntArray) -> IntArray:
    """The rows of some images, which are numbered anew."""
    kept = label_pairs[np.isin(label_pairs[:, 0], index)]
    return np.stack([np.searchsorted(index, kept[:, 0]), kept[:, 1]], axis=1)


def single_labels(label_N: Sequence[int] | IntArray) -> IntArray:
    """Rows of (image, class id) where every image has one."""
    return np.stack([np.arange(len(label_N)), np.asarray(label_N, dtype=np.int64)], axis=1)
