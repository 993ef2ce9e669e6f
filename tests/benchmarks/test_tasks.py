"""Task folders: round trip, what is scored and what is left out, scores against a loop, and every complaint about bad input."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray

from mc2.benchmarks.tasks import PREDICTIONS_SCHEMA, TaskFolder, write_task_folder
from tests.benchmarks.toys import DIM, square, toy_names, toy_task, write_toy_task


def test_a_folder_reads_back_what_was_written(tmp_path: Path) -> None:
    images = [(f"k{i}", bytes([i % 251, i % 7]), i % 3) for i in range(2500)]  # three row groups
    write_task_folder(tmp_path / "a", "toy", images, [("de", c, f"n{c}") for c in range(3)])
    task = TaskFolder(tmp_path / "a")
    assert (task.name, list(task.languages), list(task.image_set.keys)) == ("toy", ["de"], [key for key, _, _ in images])
    for start, stop in ((0, 2500), (1000, 1100), (1023, 2049), (7, 7)):
        assert list(task.image_set.read(start, stop)) == [image for _, image, _ in images[start:stop]]


def test_the_same_task_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [write_toy_task(tmp_path / name / "toy") for name in ("a", "b")]
    for file in ("task.json", "images.parquet", "names.parquet"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def test_texts_are_names_then_prompts_and_none_twice(tmp_path: Path) -> None:
    task = toy_task(tmp_path / "toy", num_classes=4)
    assert task.texts("en") == (
        *("thing", "thing 1 of all", "thing 3 of all"),
        *(
            "a photo of thing",
            "the thing",
            "a photo of thing 1 of all",
            "the thing 1 of all",
            "a photo of thing 3 of all",
            "the thing 3 of all",
        ),
    )
    assert task.texts("ja") == ("物0", "物2", "物3")


Vector = NDArray[np.float64]


def unit(vector: Vector) -> Vector:
    scaled: Vector = vector / np.linalg.norm(vector)
    return scaled


def slow_scores(
    task_names: list[tuple[str, int, str]],
    labels: list[int],
    language: str,
    prompts: list[str],
    image: Vector,
    vector: Callable[[str], Vector],
) -> dict[str, float]:
    """Every metric of a language from the protocol's text: loops over images and names."""
    names: dict[int, list[str]] = {}
    for own, label, name in task_names:
        if own == language:
            names.setdefault(label, []).append(name)
    classes = {
        label: unit(np.mean([unit(vector(p.replace("{}", n))) for n in own for p in prompts], axis=0))
        for label, own in sorted(names.items())
    }
    scored = [(unit(x), label) for x, label in zip(image, labels, strict=True) if label in names]
    texts = list(dict.fromkeys(name for own, _, name in task_names if own == language))
    found: dict[str, list[bool]] = {}
    for x, label in scored:
        order = sorted(classes, key=lambda c: -round(float(x @ classes[c]), 9))
        near = sorted(texts, key=lambda t: -round(float(x @ unit(vector(t))), 9))
        for k in (1, 5):
            found.setdefault(f"top{k}", []).append(label in order[:k])
        for k in (1, 5, 10):
            found.setdefault(f"i2t_r{k}", []).append(any(t in names[label] for t in near[:k]))
    for text in texts:
        owners = {label for label, names_of in names.items() if text in names_of}
        if owners & {label for _, label in scored}:
            near_images = sorted(scored, key=lambda s: -round(float(unit(vector(text)) @ s[0]), 9))
            for k in (1, 5, 10):
                found.setdefault(f"t2i_r{k}", []).append(any(label in owners for _, label in near_images[:k]))
    return {metric: float(np.mean(hits)) for metric, hits in found.items()}


@pytest.mark.parametrize("language", ["de", "ja", "en"])
def test_scores_equal_loops_over_the_protocol(tmp_path: Path, language: str) -> None:
    task = toy_task(tmp_path / "toy")
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(23, DIM, generator=generator), torch.randn(len(task.texts(language)), DIM, generator=generator)
    vectors = dict(zip(task.texts(language), text.double().numpy(), strict=True))
    prompts = ["a photo of {}", "the {}"] if language == "en" else ["{}"]
    need = slow_scores(toy_names(5), task.label_pairs[:, 1].tolist(), language, prompts, image.double().numpy(), vectors.__getitem__)
    found = task.score(language, image, task.condense(language, text))
    assert {score.metric: score.value for score in found} == pytest.approx(need)


def test_unnamed_classes_are_left_out_and_counted(tmp_path: Path) -> None:
    """23 images of classes 0..3; Japanese has no name for class 1 (6 images), class 4 has names and no image."""
    task = toy_task(tmp_path / "toy")
    counts = {
        (language, score.metric): (score.num_samples, score.num_candidates)
        for language in task.languages
        for score in task.score(language, torch.randn(23, DIM), task.condense(language, torch.randn(len(task.texts(language)), DIM)))
    }
    assert (counts["de", "top1"], counts["ja", "top1"]) == ((23, 5), (17, 4))
    assert (counts["de", "i2t_r1"], counts["ja", "i2t_r1"], counts["en", "i2t_r1"]) == ((23, 7), (17, 4), (23, 4))
    assert (counts["de", "t2i_r1"], counts["ja", "t2i_r1"], counts["en", "t2i_r1"]) == ((6, 23), (3, 17), (3, 23))


def test_predictions_name_the_nearest_classes(tmp_path: Path) -> None:
    task = toy_task(tmp_path / "toy")
    image, text = (
        torch.eye(DIM)[[i % 4 for i in range(23)]],
        torch.eye(DIM)[: len(task.texts("ja"))],
    )  # Japanese names 0, 2, 3, 4 on axes 0, 1, 2, 3
    table = task.predictions("ja", image, task.condense("ja", text), num_names=2)
    assert table.schema == PREDICTIONS_SCHEMA
    rows = table.to_pylist()
    assert len(rows) == 2 * 17
    assert [(row["key"], row["rank"], row["class"], row["name"], row["correct"]) for row in rows[:4]] == [
        ("image000", 0, 0, "物0", True),
        ("image000", 1, 2, "物2", False),
        ("image002", 0, 3, "物3", False),  # axis 2
        ("image002", 1, 0, "物0", False),
    ]
    assert [row["score"] for row in rows[:2]] == [1.0, 0.0]


def rewrite(path: Path, **columns: Sequence[object]) -> None:
    """`label` becomes the column "class"."""
    pq.write_table(pa.table({"class" if name == "label" else name: list(column) for name, column in columns.items()}), path)


def edit_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no images": (lambda f: (f / "images.parquet").unlink(), r"images\.parquet: not found"),
    "no task.json": (lambda f: (f / "task.json").unlink(), r"task\.json: not found"),
    "no name": (lambda f: edit_json(f / "task.json", name=None), 'found no "name"'),
    "not parquet": (lambda f: (f / "names.parquet").write_bytes(b"hello"), r"names\.parquet: not the parquet file it should be"),
    "cut short": (
        lambda f: (f / "images.parquet").write_bytes((f / "images.parquet").read_bytes()[:-20]),
        r"images\.parquet: not the parquet",
    ),
    "no column": (lambda f: rewrite(f / "names.parquet", language=["de"], name=["x"]), r"names\.parquet: has no column 'class'"),
    "null": (
        lambda f: rewrite(f / "names.parquet", language=["de", None], label=[0, 0], name=["x", "y"]),
        r"names\.parquet: has empty cells",
    ),
    "text as class": (
        lambda f: rewrite(f / "names.parquet", language=["de"], label=["a"], name=["x"]),
        r"names\.parquet: not the parquet",
    ),
    "no rows": (lambda f: rewrite(f / "images.parquet", key=[], image=[], label=[]), "found 0 images"),
    "key twice": (lambda f: rewrite(f / "images.parquet", key=["a", "a"], image=[b"", b""], label=[0, 1]), "key 'a' occurs 2 times"),
    "class out of range": (
        lambda f: rewrite(f / "images.parquet", key=["a"], image=[b""], label=[9]),
        "'a' has class 9, which has no name",
    ),
    "negative class": (
        lambda f: rewrite(f / "names.parquet", language=["de"] * 6, label=[-1, 0, 1, 2, 3, 4], name=list("uvwxyz")),
        "found class -1",
    ),
    "empty name": (
        lambda f: rewrite(f / "names.parquet", language=["de"] * 5, label=[0, 1, 2, 3, 4], name=["a", " ", "c", "d", "e"]),
        "empty name",
    ),
    "unknown language": (
        lambda f: rewrite(f / "names.parquet", language=["xq"] * 5, label=[0, 1, 2, 3, 4], name=list("abcde")),
        "code 'xq'",
    ),
    "useless language": (
        lambda f: rewrite(f / "names.parquet", language=["de"] * 4 + ["ja"], label=[0, 1, 2, 3, 4], name=list("abcde")),
        "'ja' names no class that has an image",
    ),
    "group without names": (lambda f: edit_json(f / "task.json", groups={"fr": "seen"}), "groups mention 'fr', which has no names"),
    "prompts without names": (lambda f: edit_json(f / "task.json", prompts={"fr": ["{}"]}), "prompts mention 'fr', which has no names"),
    "prompt without place": (lambda f: edit_json(f / "task.json", prompts={"de": ["ein Ding"]}), "'ein Ding' of 'de' has 0 places"),
    "no prompts": (lambda f: edit_json(f / "task.json", prompts={"de": []}), "'' of 'de' has 0 places"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    spoil, message = BROKEN[case]
    folder = write_toy_task(tmp_path / "toy")
    spoil(folder)
    with pytest.raises(ValueError, match=message) as caught:
        TaskFolder(folder)
    assert "\n" not in str(caught.value)


def test_nothing_is_written_for_a_task_that_does_not_fit_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task 'toy': image key 'a' occurs 2 times"):
        write_task_folder(tmp_path / "toy", "toy", [("a", square(0), 0)] * 2, [("de", 0, "Ding")])
    assert not (tmp_path / "toy").exists()


def test_scores_carry_the_outcome_of_each_sample(tmp_path: Path) -> None:
    task = toy_task(tmp_path / "toy")
    torch.manual_seed(0)
    for score in task.score("ja", torch.randn(23, DIM), task.condense("ja", torch.randn(len(task.texts("ja")), DIM))):
        assert score.outcomes is not None
        assert score.clusters is not None
        assert len(score.outcomes) == len(score.clusters) == score.num_samples
        assert score.outcomes.mean() == pytest.approx(score.value)


def test_a_sample_scores_a_fixed_part_of_the_images(tmp_path: Path) -> None:
    """The same images whatever is asked for beside them, the same candidates, and a name that says it."""
    task = toy_task(tmp_path / "toy")
    part = task.sample(9)
    keys = list(part.image_set.keys)
    assert len(keys) == 9
    assert keys == [key for key in task.image_set.keys if key in keys]
    assert set(keys) < set(task.sample(15).image_set.keys)
    place = [list(task.image_set.keys).index(key) for key in keys]
    whole = list(task.image_set.read(0, 23))
    assert list(part.image_set.read(0, 9)) == [whole[i] for i in place]
    assert list(part.image_set.read(4, 6)) == [whole[i] for i in place[4:6]]
    image, text = torch.randn(23, DIM), torch.randn(len(task.texts("de")), DIM)
    found = {score.metric: score for score in part.score("de", image[place], part.condense("de", text))}
    assert (found["top1"].protocol, found["top1"].num_samples, found["top1"].num_candidates) == ("classification-9-of-23-images", 9, 5)
    full = next(score for score in task.score("de", image, task.condense("de", text)) if score.metric == "top1")
    assert full.outcomes is not None
    assert full.outcomes[place].tolist() == pytest.approx(found["top1"].outcomes)
    assert task.sample(99).score("de", image, task.condense("de", text))[0].protocol == "classification"
    with pytest.raises(ValueError, match="a part of 1 images has none of language 'ja'; raise num_images"):
        toy_task(tmp_path / "few", num_classes=3).sample(1)
