"""Data sets of objects and places from all over the world: Dollar Street, GeoDE and Google Landmarks v2."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from mc2.benchmarks.tasks.class_texts import ClassTexts, single_labels
from mc2.benchmarks.tasks.classification import Classification
from mc2.benchmarks.tasks.image_sets import ImageFiles
from mc2.benchmarks.tasks.imagenet import NUM_CLASSES, english, english_texts
from mc2.benchmarks.tasks.reading import Rows, check_unique, need, read_csv

DOLLAR_STREET = "dataset_dollarstreet/ (images_v2_imagenet_train.csv, images_v2_imagenet_test.csv, assets/) comes from MLCommons, https://mlcommons.org/datasets/dollar-street"
GEODE = "GeoDE (index.csv, images/) comes from https://geodiverse-data-collection.cs.princeton.edu"
GLDV2 = (
    "retrieval_solution_v2.1.csv, index_image_to_landmark.csv, index_label_to_category.csv and the test images come from "
    "https://github.com/cvdfoundation/google-landmark"
)
NUM_INCOME_GROUPS = 4


@final
class DollarStreet(Classification):
    """Photographs of things in homes, told apart among all 1,000 classes of ImageNet with 80 prompts: right if any of an image's classes is among the first k.

    Also by region and by quarter of income (of these images, Q1 the poorest): `top1[region=af]`, `top5[income=Q1]`.
    """

    def __init__(self, folder: str, splits: list[str] | None = None, name: str = "dollar_street") -> None:
        """
        Args:
            folder: with images_v2_imagenet_<split>.csv and the images at their `imageRelPath`.
            splits: null: train and test together, as the paper counts; an image that is in both counts once.
        """
        root = Path(folder)
        rows = unique_rows(dollar_street_rows(root, splits or ["train", "test"]), "imageRelPath")
        labels = [synset_ids(str(root), row) for row in rows]
        images = ImageFiles(root, [row["imageRelPath"] for row in rows], DOLLAR_STREET)
        label_pairs = np.array([(index, label) for index, own in enumerate(labels) for label in own], dtype=np.int64)
        groups = {"region": [row["region.id"] for row in rows], "income": income_groups(str(root), rows)}
        super().__init__(name, images, label_pairs, english_texts, image_groups=groups)


def dollar_street_rows(folder: Path, splits: Sequence[str]) -> Rows:
    """The rows of the splits, one after the other."""
    columns = ("imageRelPath", "imagenet_sysnet_id", "country.id", "region.id", "income")
    return [row for split in splits for row in read_csv(folder / f"images_v2_imagenet_{split}.csv", columns, DOLLAR_STREET)]


def unique_rows(rows: Rows, key: str) -> Rows:
    """The first row of each key."""
    unique: dict[str, dict[str, str]] = {}
    for row in rows:
        unique.setdefault(row[key], row)
    return list(unique.values())


def synset_ids(where: str, row: dict[str, str]) -> list[int]:
    """The classes of an image. Errors: ValueError that names the image whose list is empty, no list or out of range."""
    try:
        labels = ast.literal_eval(row["imagenet_sysnet_id"])
    except (ValueError, SyntaxError):
        labels = None
    if not isinstance(labels, list) or not labels or not all(type(label) is int and 0 <= label < NUM_CLASSES for label in labels):
        found = row["imagenet_sysnet_id"]
        raise ValueError(
            f"{where}: image {row['imageRelPath']!r} has imagenet_sysnet_id {found!r}, need a list of 0 to {NUM_CLASSES - 1}; {DOLLAR_STREET}"
        )
    return sorted(set(labels))


def income_groups(where: str, rows: Rows) -> list[str]:
    """Q1 (the poorest) to Q4, by the quartiles of the images' incomes."""
    try:
        income = np.array([float(row["income"]) for row in rows])
    except ValueError as error:
        raise ValueError(f"{where}: an income is no number ({error}); {DOLLAR_STREET}") from error
    bounds = np.quantile(income, np.arange(1, NUM_INCOME_GROUPS) / NUM_INCOME_GROUPS)
    return [f"Q{1 + int(np.searchsorted(bounds, value, side='left'))}" for value in income]


@final
class GeoDE(Classification):
    """61,940 photographs of 40 objects from six regions: 40 names, the 80 prompts of ImageNet, top-1; also by region, `top1[region=Africa]`."""

    def __init__(self, folder: str, name: str = "geode") -> None:
        """folder: with index.csv and images/."""
        rows, images = geode_images(Path(folder))
        objects = sorted({row["object"] for row in rows})
        position = {name: index for index, name in enumerate(objects)}

        def class_texts(_language: str) -> ClassTexts:
            names = [(index, text.replace("_", " ")) for index, text in enumerate(objects)]
            return ClassTexts.build(names, {"classification": english()[1]})

        label_pairs = single_labels([position[row["object"]] for row in rows])
        super().__init__(name, images, label_pairs, class_texts, image_groups={"region": [row["region"] for row in rows]})


def geode_images(folder: Path) -> tuple[Rows, ImageFiles]:
    """The rows of index.csv and their images; `file_path` is below images/, or below the folder itself."""
    rows = list(read_csv(folder / "index.csv", ("object", "file_path", "ip_country", "region"), GEODE))
    check_unique(str(folder / "index.csv"), "file_path", [row["file_path"] for row in rows])
    below = folder / "images" if (folder / "images").is_dir() and not rows[0]["file_path"].startswith("images/") else folder
    return rows, ImageFiles(below, [row["file_path"] for row in rows], GEODE)


@final
class GLDv2(Classification):
    """Landmarks: the nearest of the names of all landmarks that the queries' index images show, without a prompt, top-1 and top-5.

    A query's label is the landmark that most of its index images show (of equally many the one that comes first among them). A name is what the category says
    after its last ":", with spaces for "_". Landmarks of the same name are one class; queries that the solution ignores are left out.
    """

    def __init__(self, folder: str, name: str = "gldv2") -> None:
        """folder: with the three CSV files and test/, either test/<id>.jpg or as it is distributed test/<a>/<b>/<c>/<id>.jpg."""
        root = Path(folder)
        solution = read_csv(root / "retrieval_solution_v2.1.csv", ("id", "images", "Usage"), GLDV2)
        queries = [row for row in solution if row["Usage"] in ("Private", "Public")]
        wanted = {image for query in queries for image in query["images"].split()}
        index = read_csv(root / "index_image_to_landmark.csv", ("id", "landmark_id"), GLDV2)
        landmark_of = {row["id"]: row["landmark_id"] for row in index if row["id"] in wanted}
        categories = read_csv(root / "index_label_to_category.csv", ("landmark_id", "category"), GLDV2)
        category = {row["landmark_id"]: row["category"] for row in categories}
        shown = [landmarks(str(root), query, landmark_of, category) for query in queries]
        names = sorted({landmark_name(category[landmark]) for own in shown for landmark in own})
        position = {text: index for index, text in enumerate(names)}
        label = [position[landmark_name(category[Counter(own).most_common(1)[0][0]])] for own in shown]
        images = ImageFiles(need(root / "test", GLDV2), query_paths(root / "test", [query["id"] for query in queries]), GLDV2)

        def class_texts(_language: str) -> ClassTexts:
            return ClassTexts.build(list(enumerate(names)), {"classification": ["{}"]})

        super().__init__(name, images, single_labels(label), class_texts)


def query_paths(folder: Path, keys: Sequence[str]) -> list[str]:
    """Where the queries lie below test/: all beside each other, or as they are distributed."""
    flat = bool(keys) and (folder / f"{keys[0]}.jpg").exists()
    return [f"{key}.jpg" if flat else f"{key[0]}/{key[1]}/{key[2]}/{key}.jpg" for key in keys]


def landmarks(where: str, query: dict[str, str], landmark_of: dict[str, str], category: dict[str, str]) -> list[str]:
    """The landmark of each index image of a query. Errors: ValueError that names the query whose images or landmarks are not known."""
    found = [landmark_of.get(image) for image in query["images"].split()]
    if not found or any(landmark is None or landmark not in category for landmark in found):
        raise ValueError(
            f"{where}: query {query['id']!r} has an index image without a landmark or category; the CSV files are of different releases; {GLDV2}"
        )
    return [landmark for landmark in found if landmark is not None]


def landmark_name(category: str) -> str:
    """ "Happy Valley Racecourse" for "http://commons.wikimedia.org/wiki/Category:Happy_Valley_Racecourse"."""
    return category.rsplit(":", 1)[-1].replace("_", " ").strip('" ')
