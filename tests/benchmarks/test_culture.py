"""Dollar Street, GeoDE and GLDv2 in their official layouts, and few-shot geo-localisation on the first two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mc2.benchmarks import tasks
from mc2.benchmarks.tasks import Task
from mc2.benchmarks.tasks.imagenet import english
from tests.benchmarks import layouts
from tests.benchmarks.slow_scores import DIM, scored, slow_classifier, slow_hits, slow_recall


def test_dollar_street_is_right_with_any_of_the_classes_and_counts_an_image_once(tmp_path: Path) -> None:
    task = tasks.DollarStreet(str(layouts.dollar_street(tmp_path)))
    assert len(task.image_set.keys) == 16  # 10 + 7 rows, one image in both
    found, image, vector = scored(task, "en")
    classes = slow_classifier([[name] for name in english()[0]], english()[1], vector)
    right = [{index % 5} | (set() if index % 4 else {900}) for index in range(16)]
    for k in (1, 5):
        hits = slow_hits(image, classes, right, k)
        assert found["classification", f"top{k}"].value == pytest.approx(hits.mean())
        assert found["classification", f"top{k}[region=af]"].value == pytest.approx(hits[::3].mean())
        assert found["classification", f"top{k}[income=Q1]"].value == pytest.approx(hits[:4].mean())  # incomes rise with the number
    assert len(tasks.DollarStreet(str(tmp_path), splits=["test"]).image_set.keys) == 7


def test_geode_has_the_names_of_its_objects(tmp_path: Path) -> None:
    task = tasks.GeoDE(str(layouts.geode(tmp_path)))
    found, image, vector = scored(task, "en")
    classes = slow_classifier([["bag"], ["hand soap"], ["hat"]], english()[1], vector)
    hits = slow_hits(image, classes, [{(1, 0, 2)[index % 3]} for index in range(12)], 1)
    assert found["classification", "top1"].value == pytest.approx(hits.mean())
    assert found["classification", "top1[region=Africa]"].value == pytest.approx(hits[::2].mean())


@pytest.mark.parametrize("flat", [False, True])
def test_gldv2_labels_a_query_with_the_majority_of_its_index_images(tmp_path: Path, flat: bool) -> None:
    task = tasks.GLDv2(str(layouts.gldv2(tmp_path, flat)))
    assert task.texts("en") == ("Bridge", "Happy Valley Racecourse")  # no prompt; what no query shows is no candidate
    assert task.label_pairs[:, 1].tolist() == [1, 0, 0]
    found, image, vector = scored(task, "en")
    classes = np.stack([vector("Bridge"), vector("Happy Valley Racecourse")])
    assert found["classification", "top1"].value == slow_recall(image, classes, [{1}, {0}, {0}], 1)


@pytest.mark.parametrize("kind", ["dollar_street", "geode"])
def test_geolocation_learns_countries_from_a_few_images(tmp_path: Path, kind: str) -> None:
    task: Task
    if kind == "dollar_street":
        layouts.dollar_street(tmp_path, num_images=200)
        task = tasks.DollarStreetGeolocation(str(tmp_path))
    else:
        task = tasks.GeoDEGeolocation(str(layouts.geode(tmp_path, num_images=120)), num_training=60)
    scored(task, "zxx")
    image = torch.randn(len(task.image_set.keys), DIM, generator=torch.Generator().manual_seed(0))
    place = torch.from_numpy(task.label_N)
    image[torch.arange(len(place)), place] += 9.0  # the country is plain to see
    found = {score.protocol: score for score in task.score("zxx", image, torch.empty(0, DIM))}
    assert found["few-shot-10"].value > 0.9
    assert found["few-shot-5"].num_samples == (191 if kind == "dollar_street" else 60)
    shots = task.shots
    assert set(shots[5]) <= set(shots[10])
    assert not set(shots[25]) & set(task.test)
    most = 3 if kind == "dollar_street" else 5  # there are 9 training images of three countries
    assert np.bincount(task.label_N[shots[5]]).max() == most
