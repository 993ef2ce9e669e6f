"""`num_images`: a part of a task's images is scored as if the others were not there, and says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mc2.benchmarks import tasks
from mc2.benchmarks.tasks import Task
from tests.benchmarks import layouts
from tests.benchmarks.slow_scores import embeddings


def make(kind: str, folder: Path) -> tuple[Task, str]:
    """A task of each kind of scoring, with a language of it."""
    if kind == "classification":
        return tasks.DollarStreet(str(layouts.dollar_street(folder, num_images=40))), "en"
    if kind == "retrieval":
        return tasks.XM3600(str(layouts.xm3600(folder)), locales=list(layouts.XM_LOCALES)), "tl"
    return tasks.CVQA(str(layouts.cvqa(folder))), "mul"


@pytest.mark.parametrize("kind", ["classification", "retrieval", "choice"])
def test_a_part_of_the_images_is_scored_as_if_the_others_were_not_there(tmp_path: Path, kind: str) -> None:
    task, language = make(kind, tmp_path)
    part = task.sample(4)
    place = [list(task.image_set.keys).index(key) for key in part.image_set.keys]
    assert len(place) == 4
    image, text = embeddings(task, language)
    rows = {own: row for own, row in zip(task.texts(language), text, strict=True)}
    own_text = torch.stack([rows[text] for text in part.texts(language)])
    found = part.score(language, image[place], part.condense(language, own_text))
    whole = {(score.protocol, score.metric): score for score in task.score(language, image, task.condense(language, text))}
    for score in found:
        protocol, end = score.protocol.split("-4-of-", 1)
        assert end == f"{len(task.image_set.keys)}-images"
        full = whole[protocol, score.metric]
        if kind == "retrieval":  # fewer candidates: no query is worse off
            assert score.num_candidates < full.num_candidates
        elif "income" not in score.metric:
            assert score.outcomes is not None
            assert full.outcomes is not None
            of_image = dict(zip(np.arange(len(full.outcomes)) if full.clusters is None else full.clusters, full.outcomes, strict=True))
            clusters = np.arange(len(score.outcomes)) if score.clusters is None else score.clusters
            assert [of_image[place[i]] for i in clusters] == pytest.approx(score.outcomes)
    assert {score.protocol for score in task.sample(10**6).score(language, image, task.condense(language, text))} == {p for p, _ in whole}


def test_what_cannot_be_cut_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_images: found 3, but the task geode_geolocation cannot be cut"):
        tasks.GeoDEGeolocation(str(layouts.geode(tmp_path)), num_training=6).sample(3)
