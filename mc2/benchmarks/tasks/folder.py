"""The neutral layout that anybody can write for their own data: images of classes, and the names of the classes in any number of languages.

Shapes: N images, T texts of one language, C rows that are kept of them, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from mc2 import languages, storage
from mc2.benchmarks import metrics
from mc2.benchmarks.results import Score
from mc2.benchmarks.tasks.class_texts import ClassTexts, IntArray, part_of_labels, single_labels
from mc2.benchmarks.tasks.classification import classifier_answers
from mc2.benchmarks.tasks.image_sets import ParquetImages
from mc2.benchmarks.tasks.scores import classification_scores, recall_scores
from mc2.benchmarks.tasks.task import Task

IMAGES_SCHEMA = pa.schema([("key", pa.string()), ("image", pa.binary()), ("class", pa.int32())])
NAMES_SCHEMA = pa.schema([("language", pa.string()), ("class", pa.int32()), ("name", pa.string())])


@final
class TaskFolder(Task):
    """Zero-shot classification and retrieval of named classes, from a folder that `write_task_folder` (or anybody) wrote.

    task.json       {"name": str, "groups": {language: group}, "prompts": {language: ["... {} ..."]}}; groups and prompts may be missing
    images.parquet  key (string, unique), image (binary: an encoded file), class (int32)
    names.parquet   language (string), class (int32), name (string): no row = no name in that language, several rows = synonyms

    A class without a name in a language is no candidate there, and its images are not scored: `num_classes` and `num_samples` show it.
    Classification: the classifier is the mean over prompts and synonyms (without prompts: the bare name), top-1 and top-5.
    Retrieval: the candidates are the scored images and all different names of the language, without prompts; an image and every name of its
    class are positives; R@1, R@5, R@10 for text to image (per name that has an image) and image to text (per image).
    Errors: ValueError in one line for files that are missing, unreadable or do not fit each other.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        description = storage.read_json(self.folder / "task.json")
        labels = read_table(self.folder / "images.parquet", IMAGES_SCHEMA, ["key", "class"])
        names = read_table(self.folder / "names.parquet", NAMES_SCHEMA, NAMES_SCHEMA.names)
        if not isinstance(description, dict) or not isinstance(description.get("name"), str):
            raise ValueError(f'{self.folder / "task.json"}: found no "name"; need {{"name": ..., "groups": {{}}, "prompts": {{}}}}')
        groups, prompts = description.get("groups", {}), description.get("prompts", {})
        check_tables(str(self.folder), labels, names, groups, prompts)
        super().__init__(
            description["name"],
            ParquetImages([self.folder / "images.parquet"], labels["key"].to_pylist()),
            sorted(set(names["language"].to_pylist())),
            groups,
        )
        self.label_pairs = single_labels(labels["class"].to_numpy())
        self._texts = {language: class_texts(names, language, prompts.get(language, ["{}"])) for language in self.languages}

    def _num_names(self, language: str) -> int:
        """The first texts are the names."""
        return int(self._texts[language].pairs["names"][:, 0].max()) + 1

    def sample(self, num_images: int) -> TaskFolder:
        part, index = self.part(num_images)
        part.label_pairs = part_of_labels(self.label_pairs, index)
        for language in self.languages:
            if not len(self._texts[language].answers(part.label_pairs)[0]):
                raise part.without_image(language)
        return part

    def texts(self, language: str) -> Sequence[str]:
        return self._texts[language].texts

    def condense(self, language: str, text_TD: Tensor) -> Tensor:
        """The names, then the classes."""
        return torch.cat([text_TD[: self._num_names(language)], self._texts[language].classifier("classification", text_TD)])

    def score(self, language: str, image_ND: Tensor, text_CD: Tensor) -> list[Score]:
        texts, num_names = self._texts[language], self._num_names(language)
        images, pairs = texts.answers(self.label_pairs)
        image_ND = image_ND[torch.from_numpy(images).to(image_ND.device)]
        scores = classification_scores("classification" + self.suffix, image_ND, text_CD[num_names:], pairs, images, ("top1", "top5"), {})
        return scores + name_retrieval("retrieval" + self.suffix, image_ND, text_CD[:num_names], pairs[:, 1], texts.pairs["names"], images)

    def predictions(self, language: str, image_ND: Tensor, text_CD: Tensor, num_names: int) -> pa.Table:
        """Answers of the zero-shot classifier; a class answers with the first of its synonyms, `score` is the cosine."""
        texts, class_CD = self._texts[language], text_CD[self._num_names(language) :]
        return classifier_answers(self.name, language, self.image_set.keys, image_ND, class_CD, texts, self.label_pairs, num_names)


def name_retrieval(
    protocol: str, image_ND: Tensor, name_KD: Tensor, label_N: IntArray, name_pairs: IntArray, images: IntArray
) -> list[Score]:
    """Retrieval where every name of an image's class is a positive; a name without an image asks nothing."""
    pairs = torch.from_numpy(matching_pairs(label_N, name_pairs)).to(image_ND.device)
    asking = torch.from_numpy(np.unique(name_pairs[np.isin(name_pairs[:, 1], label_N), 0])).to(image_ND.device)
    to_image = metrics.positive_ranks(name_KD, image_ND, pairs.flip(1))[asking]
    to_text = metrics.positive_ranks(image_ND, name_KD, pairs)
    return recall_scores(protocol, "t2i", to_image, len(image_ND), asking.cpu().numpy()) + recall_scores(
        protocol, "i2t", to_text, len(name_KD), images
    )


def matching_pairs(label_N: IntArray, name_pairs: IntArray) -> IntArray:
    """All (image, text) that share a class, from the class of each image and (text, class) rows."""
    by_class = np.unique(name_pairs, axis=0)
    by_class = by_class[np.argsort(by_class[:, 1], kind="stable")]
    first, last = np.searchsorted(by_class[:, 1], label_N, "left"), np.searchsorted(by_class[:, 1], label_N, "right")
    image = np.repeat(np.arange(len(label_N)), last - first)
    within = np.arange(len(image)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
    return np.stack([image, by_class[np.repeat(first, last - first) + within, 0]], axis=1)


def class_texts(names: pa.Table, language: str, prompts: Sequence[str]) -> ClassTexts:
    """The rows of one language out of names.parquet: the bare names, then those in prompts."""
    rows = names.filter(pc.equal(names["language"], language))
    named = list(zip(rows["class"].to_pylist(), rows["name"].to_pylist(), strict=True))
    return ClassTexts.build(named, {"names": ["{}"], "classification": prompts})


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    """Some columns of a parquet file that must have all of the schema's.

    Errors: ValueError for a file that is missing, broken, or has empty cells.
    """
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in schema.names if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path}: has no column {missing[0]!r}; need {', '.join(schema.names)}")
            table = file.read(columns=columns).select(columns).cast(pa.schema([schema.field(name) for name in columns]))
    except FileNotFoundError as error:
        raise ValueError(
            f"{path}: not found; a task folder has task.json, images.parquet and names.parquet (see mc2.benchmarks.tasks)"
        ) from error
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not the parquet file it should be ({reason}); need columns {', '.join(schema.names)}") from error
    if any(column.null_count for column in table.columns):
        raise ValueError(f"{path}: has empty cells; need {', '.join(columns)} in every row")
    return table


def check_tables(where: str, labels: pa.Table, names: pa.Table, groups: Mapping[str, str], prompts: Mapping[str, Sequence[str]]) -> None:
    """Errors: ValueError for the first thing in a task that does not fit the rest."""
    if not len(labels) or not len(names):
        raise ValueError(f"{where}: found {len(labels)} images and {len(names)} names; need at least one of each")
    twice = labels.group_by("key").aggregate([([], "count_all")]).filter(pc.field("count_all") > 1)
    if len(twice):
        raise ValueError(
            f"{where}: image key {twice['key'][0].as_py()!r} occurs {twice['count_all'][0].as_py()} times; keys must be unique"
        )
    named = set(names["class"].to_pylist())
    for key, label in zip(labels["key"].to_pylist(), labels["class"].to_pylist(), strict=True):
        if label not in named:
            raise ValueError(f"{where}: image {key!r} has class {label}, which has no name in any language; need a class of names.parquet")
    if min(named) < 0:
        raise ValueError(f"{where}: found class {min(named)} in the names; classes are numbered from 0")
    if "" in pc.utf8_trim_whitespace(names["name"]).to_pylist():
        raise ValueError(f"{where}: found an empty name; leave the row out where a class has no name")
    check_languages(where, set(labels["class"].to_pylist()), names, groups, prompts)


def check_languages(where: str, used: set[int], names: pa.Table, groups: Mapping[str, str], prompts: Mapping[str, Sequence[str]]) -> None:
    """Errors: ValueError for an unknown code, a language that names no image, a setting without names, or a prompt without {}."""
    classes_of: dict[str, set[int]] = {}
    for language, label in zip(names["language"].to_pylist(), names["class"].to_pylist(), strict=True):
        classes_of.setdefault(language, set()).add(label)
    for language, classes in classes_of.items():
        languages.canonical(language)
        if not classes & used:
            raise ValueError(f"{where}: language {language!r} names no class that has an image; add names or leave the language out")
    for setting, value in (("groups", groups), ("prompts", prompts)):
        if without := sorted(set(value) - set(classes_of)):
            raise ValueError(
                f"{where}: {setting} mention {without[0]!r}, which has no names; need one of {', '.join(sorted(classes_of)[:20])}"
            )
    for language, templates in prompts.items():
        for template in templates or [""]:
            if template.count("{}") != 1:
                raise ValueError(
                    f"{where}: prompt {template!r} of {language!r} has {template.count('{}')} places for the name; need one {{}}"
                )


def write_task_folder(
    folder: str | Path,
    name: str,
    images: Iterable[tuple[str, bytes, int]],
    names: Iterable[tuple[str, int, str]],
    groups: Mapping[str, str] | None = None,
    prompts: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write a task that `TaskFolder` reads: images as (key, encoded file, class id), names as (language, class id, name).

    Checked before anything is written; each file appears whole, task.json last. The same arguments give the same bytes.
    """
    folder, groups, prompts = Path(folder), dict(groups or {}), dict(prompts or {})
    image_table = pa.Table.from_pylist([dict(zip(IMAGES_SCHEMA.names, row, strict=True)) for row in images], IMAGES_SCHEMA)
    name_table = pa.Table.from_pylist([dict(zip(NAMES_SCHEMA.names, row, strict=True)) for row in names], NAMES_SCHEMA)
    check_tables(f"task {name!r}", image_table, name_table, groups, prompts)
    for file_name, table in (("images.parquet", image_table), ("names.parquet", name_table)):
        with storage.atomic_write(folder / file_name) as file:
            pq.write_table(table, file, row_group_size=1024)
    storage.write_json(folder / "task.json", {"name": name, "groups": groups, "prompts": prompts})
