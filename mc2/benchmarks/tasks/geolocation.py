"""Few-shot geo-localisation: in which country was the photograph taken, from k labelled images of each.

Shapes: N images, C countries, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc2 import storage
from mc2.benchmarks import metrics
from mc2.benchmarks.results import Score
from mc2.benchmarks.tasks.culture import DOLLAR_STREET, dollar_street_rows, geode_images, unique_rows
from mc2.benchmarks.tasks.image_sets import ImageFiles
from mc2.benchmarks.tasks.scores import mean_score
from mc2.benchmarks.tasks.task import ImageSet, Task, predictions_table

NO_LANGUAGE = "zxx"  # BCP 47 for what has no words
SHOTS = (5, 10, 25)
PENALTY = 2.0**10  # on the squared weights


class FewShotGeolocation(Task):
    """Top-1 of the country of every test image, for 5, 10 and 25 training images a country (fewer where it has fewer): `few-shot-10`.

    A linear classifier by penalised least squares on standardised unit embeddings (big_vision's few-shot evaluator, penalty 2^10), trained in a moment at
    every evaluation. The draws are keyed hashes of (seed, image), so the images of 5 shots are among those of 10. A test image of a country without a
    training image is wrong, not left out. No text.
    """

    def __init__(self, name: str, image_set: ImageSet, countries: Sequence[str], training: NDArray[np.bool_], seed: int) -> None:
        """
        Args:
            countries: of every image.
            training: whether an image may be drawn for training; the others are the test.
        """
        super().__init__(name, image_set, (NO_LANGUAGE,), {})
        self.countries = countries
        self.names = sorted({country for country, may in zip(countries, training, strict=True) if may})
        if not self.names or training.all():
            raise ValueError(
                f"{name}: found {int(training.sum())} training images and {int((~training).sum())} test images; need some of each"
            )
        position = {country: index for index, country in enumerate(self.names)}
        self.label_N = np.array([position.get(country, -1) for country in countries], dtype=np.int64)
        self.test = np.flatnonzero(~training)
        order = storage.keyed_order(seed, "shots", 0, [key for key, may in zip(image_set.keys, training, strict=True) if may])
        row = {key: index for index, key in enumerate(image_set.keys)}
        drawn: dict[int, list[int]] = {}
        for key in order:
            drawn.setdefault(int(self.label_N[row[key]]), []).append(row[key])
        self.shots = {shots: np.array(sorted(i for own in drawn.values() for i in own[:shots]), dtype=np.int64) for shots in SHOTS}

    def texts(self, language: str) -> Sequence[str]:  # noqa: ARG002
        return ("",)  # no text is used, but every language has one

    def _answers(self, shots: int, image_ND: Tensor) -> Tensor:
        """What the classifier says of the test images (test images, C)."""
        train = torch.from_numpy(self.shots[shots])
        label = torch.from_numpy(self.label_N)[train].to(image_ND.device)
        mean_D, deviation_D, weights = metrics.ridge_weights(image_ND[train.to(image_ND.device)], label, len(self.names), PENALTY)
        test_ND = image_ND[torch.from_numpy(self.test).to(image_ND.device)]
        return metrics.ridge_features(test_ND, mean_D, deviation_D) @ weights

    def score(self, language: str, image_ND: Tensor, text_CD: Tensor) -> list[Score]:  # noqa: ARG002
        return [
            mean_score(
                f"few-shot-{shots}",
                "top1",
                self._answers(shots, image_ND).argmax(dim=1).cpu().numpy() == self.label_N[self.test],
                len(self.names),
                self.test,
            )
            for shots in SHOTS
        ]

    def predictions(self, language: str, image_ND: Tensor, text_CD: Tensor, num_names: int) -> pa.Table:  # noqa: ARG002
        """Countries with the most shots; the score is the regression's."""
        score_NC, order_NC = torch.sort(self._answers(max(SHOTS), image_ND), dim=1, descending=True, stable=True)
        order = order_NC[:, :num_names].cpu().numpy()
        keys = [self.image_set.keys[int(i)] for i in self.test]
        right = order == self.label_N[self.test][:, None]
        truth = [self.countries[int(i)] for i in self.test]
        return predictions_table(
            self.name, language, keys, np.arange(len(self.names)), self.names, order, score_NC[:, :num_names], right, truth
        )


@final
class DollarStreetGeolocation(FewShotGeolocation):
    """Few-shot geo-localisation on Dollar Street: `country.id`, drawn from the training split, tested on the test split."""

    def __init__(self, folder: str, seed: int = 0, name: str = "dollar_street_geolocation") -> None:
        """folder: as for `DollarStreet`."""
        root = Path(folder)
        test = unique_rows(dollar_street_rows(root, ["test"]), "imageRelPath")
        tested = {row["imageRelPath"] for row in test}
        train = [row for row in unique_rows(dollar_street_rows(root, ["train"]), "imageRelPath") if row["imageRelPath"] not in tested]
        rows = train + test
        images = ImageFiles(root, [row["imageRelPath"] for row in rows], DOLLAR_STREET)
        super().__init__(name, images, [row["country.id"] for row in rows], np.arange(len(rows)) < len(train), seed)


@final
class GeoDEGeolocation(FewShotGeolocation):
    """Few-shot geo-localisation on GeoDE: `ip_country`, drawn from a third of the images chosen by the seed (20,000), tested on the others."""

    def __init__(self, folder: str, seed: int = 0, num_training: int = 20_000, name: str = "geode_geolocation") -> None:
        """folder: as for `GeoDE`."""
        rows, images = geode_images(Path(folder))
        chosen = set(storage.keyed_order(seed, "geode", 0, images.keys)[:num_training])
        training = np.array([key in chosen for key in images.keys])
        super().__init__(name, images, [row["ip_country"] for row in rows], training, seed)
