"""Class names of one language as texts, and the zero-shot classifier from their embeddings.

Shapes: N images, T texts, C classes, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc2.benchmarks import metrics

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class NamedClasses:
    """The class names of one language as texts. A class is known here by its position in `classes`: the ids that have a name, ascending.

    `texts` begins with the `num_names` names themselves, none twice; prompted names follow. `name_pairs` and `prompt_pairs` are rows of
    (text index, class position): a name can belong to several classes, a class can have several names (synonyms).
    """

    classes: IntArray
    first_names: tuple[str, ...]
    texts: tuple[str, ...]
    num_names: int
    name_pairs: IntArray
    prompt_pairs: IntArray

    @classmethod
    def build(cls, names: Sequence[tuple[int, str]], prompts: Sequence[str]) -> NamedClasses:
        """From (class id, name) rows in any order; each prompt has one {} for the name."""
        first_name: dict[int, str] = {}
        for label, name in names:
            first_name.setdefault(label, name)
        classes = sorted(first_name)
        position = {label: index for index, label in enumerate(classes)}
        index_of: dict[str, int] = {}
        name_pairs = [(index_of.setdefault(name, len(index_of)), position[label]) for label, name in names]
        num_names = len(index_of)
        prompted = [(prompt.replace("{}", name), position[label]) for label, name in names for prompt in prompts]
        prompt_pairs = [(index_of.setdefault(text, len(index_of)), label) for text, label in prompted]
        return cls(
            classes=np.array(classes, dtype=np.int64),
            first_names=tuple(first_name[label] for label in classes),
            texts=tuple(index_of),
            num_names=num_names,
            name_pairs=np.unique(np.array(name_pairs, dtype=np.int64), axis=0),
            prompt_pairs=np.array(prompt_pairs, dtype=np.int64),
        )


def classifier(named: NamedClasses, text_TD: Tensor) -> Tensor:
    """The zero-shot classifier (C, D) of one language; rows in the order of `named.classes`."""
    text, position = torch.from_numpy(named.prompt_pairs).to(text_TD.device).unbind(1)
    return metrics.class_embeddings(text_TD[text], position, len(named.classes))


def matching_pairs(label_N: IntArray, name_pairs: IntArray) -> IntArray:
    """All (image, text) that share a class, from the class of each image and (text, class) rows."""
    by_class = name_pairs[np.argsort(name_pairs[:, 1], kind="stable")]
    first, last = np.searchsorted(by_class[:, 1], label_N, "left"), np.searchsorted(by_class[:, 1], label_N, "right")
    image = np.repeat(np.arange(len(label_N)), last - first)
    within = np.arange(len(image)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
    return np.stack([image, by_class[np.repeat(first, last - first) + within, 0]], axis=1)
