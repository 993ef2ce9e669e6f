"""Scores as slow as their definitions: loops over images, texts and sorted lists, written from the text of the protocols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc2.benchmarks.bootstrap import interval, replicates
from mc2.benchmarks.results import Score
from mc2.benchmarks.tasks import PREDICTIONS_SCHEMA, Task

DIM = 12
Scores = Mapping[tuple[str, str], Score]
Vector = NDArray[np.float64]


def embeddings(task: Task, language: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images and texts, not of unit length."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(len(task.image_set.keys), DIM, generator=generator),
        3 * torch.randn(len(task.texts(language)), DIM, generator=generator),
    )


def scored(task: Task, language: str) -> tuple[dict[tuple[str, str], Score], Vector, Callable[[str], Vector]]:
    """(scores by protocol and metric, unit images, unit vector of a text). Also checks what holds for all tasks."""
    assert len(set(task.texts(language))) == len(task.texts(language))
    assert len(list(task.image_set.read(0, 2))) == 2
    image, text = embeddings(task, language)
    condensed = task.condense(language, text)
    scores = task.score(language, image, condensed)
    for score in scores:
        low, high = interval(replicates(score))
        assert low is not None, f"{score.metric} has no interval"
        assert high is not None
        assert low <= high
        if score.outcomes is not None:
            assert len(score.outcomes) == score.num_samples
            assert score.clusters is None or len(score.clusters) == score.num_samples
            if score.strata is None:
                assert score.value == pytest.approx(float(score.outcomes.mean()))
    assert task.predictions(language, image, condensed, 2).schema == PREDICTIONS_SCHEMA
    by_name = {(score.protocol, score.metric): score for score in scores}
    assert len(by_name) == len(scores)
    rows = dict(zip(task.texts(language), unit(text.double().numpy()), strict=True))
    return by_name, unit(image.double().numpy()), rows.__getitem__


def unit(vectors: Vector) -> Vector:
    scaled: Vector = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return scaled


def slow_classifier(names: Sequence[Sequence[str]], prompts: Sequence[str], vector: Callable[[str], Vector]) -> Vector:
    """Normalise each embedding, mean over prompts and synonyms, normalise."""
    return np.stack([unit(np.mean([vector(p.replace("{}", name)) for name in own for p in prompts], axis=0)) for own in names])


def slow_hits(images: Vector, classes: Vector, right: Sequence[set[int]], k: int) -> NDArray[np.bool_]:
    """Whether one of the right classes is among the k with the highest cosine, image by image."""
    return np.array(
        [bool(set(np.argsort(-(classes @ image), kind="stable")[:k].tolist()) & own) for image, own in zip(images, right, strict=True)]
    )


def slow_recall(queries: Vector, candidates: Vector, positives: Sequence[set[int]], k: int) -> float:
    return float(slow_hits(queries, candidates, positives, k).mean())


def slow_recalls(image: Vector, captions: Sequence[Sequence[str]], vector: Callable[[str], Vector]) -> dict[str, float]:
    """R@k from the protocol's text: per caption, is the nearest image its own; per image that has a caption, does the nearest caption belong to it."""
    owner = owners(captions)
    text = np.stack([vector(caption) for own in captions for caption in own])
    asking = sorted(set(owner))
    own_captions = [{number for number, index in enumerate(owner) if index == asked} for asked in asking]
    recalls = {}
    for k in (1, 5, 10):
        recalls[f"t2i_r{k}"] = slow_recall(text, image, [{index} for index in owner], k)
        recalls[f"i2t_r{k}"] = slow_recall(image[asking], text, own_captions, k)
    return recalls


def owners(captions: Sequence[Sequence[str]]) -> list[int]:
    """The image of each caption."""
    return [index for index, own in enumerate(captions) for _ in own]


def values(found: Scores, protocol: str) -> dict[str, float]:
    """Metric -> value."""
    return {metric: score.value for (own, metric), score in found.items() if own == protocol}


def counts(found: Scores, protocol: str) -> dict[str, tuple[int, int]]:
    """Metric -> samples and candidates."""
    return {metric: (score.num_samples, score.num_candidates) for (own, metric), score in found.items() if own == protocol}


def retrieval_counts(captions: Sequence[Sequence[str]]) -> dict[str, tuple[int, int]]:
    """What `counts` must be of captions: every caption asks among all images, every image that has one among all captions."""
    owner = owners(captions)
    both = {"t2i": (len(owner), len(captions)), "i2t": (len(set(owner)), len(owner))}
    return {f"{direction}_r{k}": both[direction] for k in (1, 5, 10) for direction in both}
