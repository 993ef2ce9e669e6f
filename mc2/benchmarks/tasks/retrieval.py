"""Retrieval between images and captions in many languages: what XM3600, XTD, Flickr30k-200 and the retrieval sets of DataComp have in common.

Shapes: N images, T different captions of one language, K captions, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mc2.benchmarks import metrics
from mc2.benchmarks.bootstrap import mean_of, replicates
from mc2.benchmarks.results import MAIN, Score
from mc2.benchmarks.tasks.scores import IntArray, retrieval_scores
from mc2.benchmarks.tasks.task import ImageSet, Task, predictions_table


class Retrieval(Task):
    """Text to image (every caption asks for its image) and image to text (every image asks for any of its captions), R@1, R@5 and R@10.

    Candidates are all images and all captions of the language; without prompts. An image without a caption in a language is a candidate there and asks
    nothing: `num_samples` shows it.
    """

    def __init__(
        self,
        name: str,
        image_set: ImageSet,
        captions: Mapping[str, Sequence[Sequence[str]]],
        protocols: Mapping[str, int | None],
        collection: str | None = None,
    ) -> None:
        """
        Args:
            captions: language -> the captions of every image.
            protocols: name -> how many captions of an image count, the first ones; None: all.
            collection: the mean of both R@1 of the first protocol as `main` under this protocol, for the mean over a collection of tasks.
        """
        super().__init__(name, image_set, tuple(captions), {})
        self.captions, self.protocols, self.collection = captions, dict(protocols), collection
        for language, own in captions.items():
            if len(own) != len(image_set.keys) or not any(own):
                raise ValueError(
                    f"{name}: found {sum(map(bool, own))} images with captions in {language!r}, need some of {len(image_set.keys)}"
                )

    def sample(self, num_images: int) -> Retrieval:
        part, index = self.part(num_images)
        part.captions = {language: [own[i] for i in index] for language, own in self.captions.items()}
        for language, own in part.captions.items():
            if not any(own):
                raise self.without_image(language)
        return part

    def texts(self, language: str) -> Sequence[str]:
        return tuple(dict.fromkeys(caption for own in self.captions[language] for caption in own))

    def _captions(self, language: str, most: int | None) -> tuple[list[str], IntArray]:
        """The captions of a protocol in the order of the images, and the image of each."""
        counted = [own[:most] for own in self.captions[language]]
        return [caption for own in counted for caption in own], np.repeat(np.arange(len(counted)), [len(own) for own in counted])

    def _embedded(self, language: str, text_CD: Tensor, captions: Sequence[str]) -> Tensor:
        """The embedding of each caption; a caption that two images share is there twice."""
        row = {text: index for index, text in enumerate(self.texts(language))}
        return text_CD[torch.tensor([row[caption] for caption in captions], device=text_CD.device)]

    def score(self, language: str, image_ND: Tensor, text_CD: Tensor) -> list[Score]:
        scores = []
        for protocol, most in self.protocols.items():
            captions, owner = self._captions(language, most)
            scores += retrieval_scores(protocol + self.suffix, image_ND, self._embedded(language, text_CD, captions), owner)
        if self.collection and not self.suffix:
            both = [score for score in scores if score.metric in ("t2i_r1", "i2t_r1")][:2]
            drawn = mean_of([own for score in both if (own := replicates(score)) is not None])
            value = sum(score.value for score in both) / 2
            scores.append(Score(self.collection, MAIN, value, len(image_ND), len(image_ND), replicates=drawn))
        return scores

    def predictions(self, language: str, image_ND: Tensor, text_CD: Tensor, num_names: int) -> pa.Table:
        """The nearest captions of every image that has one, by the first protocol; `class` is the number of the caption."""
        captions, owner = self._captions(language, next(iter(self.protocols.values())))
        images = np.unique(owner)
        asked_ND = image_ND[torch.from_numpy(images).to(image_ND.device)]
        score_NK, order_NK = metrics.top_classes(asked_ND, self._embedded(language, text_CD, captions), num_names)
        order = order_NK.cpu().numpy()
        keys = [self.image_set.keys[i] for i in images]
        truth = [self.captions[language][i][0] for i in images]
        correct = owner[order] == images[:, None]
        return predictions_table(self.name, language, keys, np.arange(len(captions)), captions, order, score_NK, correct, truth)
