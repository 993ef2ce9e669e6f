"""Zero-shot classification in one or many languages: what ImageNet, Babel-ImageNet, SLIP-26, DataComp, Dollar Street, GeoDE and GLDv2 have in common.

Shapes: N images, T texts of one language, C classes of all protocols, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

import pyarrow as pa
import torch
from torch import Tensor

from mc2.benchmarks import metrics
from mc2.benchmarks.results import MAIN, Score
from mc2.benchmarks.tasks.class_texts import ClassTexts, IntArray, part_of_labels
from mc2.benchmarks.tasks.scores import Metric, classification_scores
from mc2.benchmarks.tasks.task import ImageSet, Task, predictions_table

LANGUAGES_AT_ONCE = 2  # 80 prompts of 1,000 names are 10 MB of text: those of 300 languages are made as they are needed


class Classification(Task):
    """Images with one or several right classes, told apart by the names of the classes in each language.

    A class without a name in a language is no candidate there, and an image without a right class there is not scored: `num_candidates` and `num_samples`
    show it. The classifier is the mean over prompts and synonyms, normalised (RECIPE 4).
    """

    def __init__(
        self,
        name: str,
        image_set: ImageSet,
        label_pairs: IntArray,
        class_texts: Callable[[str], ClassTexts],
        languages: Sequence[str] = ("en",),
        wanted: Sequence[Metric] = ("top1", "top5"),
        image_groups: Mapping[str, Sequence[str]] | None = None,
        collection: str | None = None,
    ) -> None:
        """
        Args:
            label_pairs: rows of (image, class id), every image at least once.
            class_texts: the texts of a language; each of its protocols is scored.
            wanted: metrics, the main one first.
            image_groups: kind of group -> the group of every image, which are scored too; "" is no group.
            collection: the first wanted metric once more as `main` under this protocol, for the mean over a collection of tasks.
        """
        super().__init__(name, image_set, languages, {})
        self.label_pairs, self.wanted, self.image_groups = label_pairs, tuple(wanted), dict(image_groups or {})
        self.collection = collection
        self._class_texts = lru_cache(LANGUAGES_AT_ONCE)(class_texts)

    def sample(self, num_images: int) -> Classification:
        part, index = self.part(num_images)
        part.label_pairs = part_of_labels(self.label_pairs, index)
        part.image_groups = {kind: [group[i] for i in index] for kind, group in self.image_groups.items()}
        return part

    def texts(self, language: str) -> Sequence[str]:
        return self._class_texts(language).texts

    def condense(self, language: str, text_TD: Tensor) -> Tensor:
        """The classifiers of the protocols, one below the other."""
        texts = self._class_texts(language)
        return torch.cat([texts.classifier(protocol, text_TD) for protocol in texts.pairs])

    def score(self, language: str, image_ND: Tensor, text_CD: Tensor) -> list[Score]:
        texts = self._class_texts(language)
        images, pairs = texts.answers(self.label_pairs)
        if not len(images):
            raise self.without_image(language)
        scored_ND = image_ND[torch.from_numpy(images).to(image_ND.device)]
        scores = [
            score
            for protocol, class_CD in zip(texts.pairs, torch.split(text_CD, len(texts.classes)), strict=True)
            for score in classification_scores(protocol + self.suffix, scored_ND, class_CD, pairs, images, self.wanted, self.image_groups)
        ]
        return [replace(scores[0], protocol=self.collection, metric=MAIN), *scores] if self.collection and not self.suffix else scores

    def predictions(self, language: str, image_ND: Tensor, text_CD: Tensor, num_names: int) -> pa.Table:
        """Answers of the first protocol; a class answers with the first of its synonyms, the score is the cosine."""
        texts = self._class_texts(language)
        class_CD = text_CD[: len(texts.classes)]
        return classifier_answers(self.name, language, self.image_set.keys, image_ND, class_CD, texts, self.label_pairs, num_names)


def classifier_answers(
    task: str,
    language: str,
    keys: Sequence[str],
    image_ND: Tensor,
    class_CD: Tensor,
    texts: ClassTexts,
    label_pairs: IntArray,
    num_names: int,
) -> pa.Table:
    """PREDICTIONS_SCHEMA: the nearest classes of every image that has a right one."""
    images, pairs = texts.answers(label_pairs)
    score_NK, order_NK = metrics.top_classes(image_ND[torch.from_numpy(images).to(image_ND.device)], class_CD, num_names)
    order, right = order_NK.cpu().numpy(), {(int(image), int(label)) for image, label in pairs}
    correct = [[(row, int(label)) in right for label in labels] for row, labels in enumerate(order)]
    return predictions_table(
        task, language, [keys[i] for i in images], texts.classes, texts.first_names, order, score_NK, correct, texts.truth(pairs)
    )
