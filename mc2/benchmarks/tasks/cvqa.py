"""CVQA: questions about images from 30 countries with four options each, in the language of the country and in English.

Shapes: N questions (each with its own copy of the image), T texts, O options, D embedding.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from mc2.benchmarks import metrics
from mc2.benchmarks.results import Score
from mc2.benchmarks.tasks.image_sets import ParquetImages
from mc2.benchmarks.tasks.reading import check_unique, need
from mc2.benchmarks.tasks.scores import IntArray, mean_score
from mc2.benchmarks.tasks.task import Task, predictions_table
from mc2.data.tokenizer import Tokenizer

SOURCE = "the parquet files (data/test-*.parquet, or one with the labels) come from https://huggingface.co/datasets/afaji/cvqa"
NUM_OPTIONS = 4
PROTOCOLS = {"en": ("Translated Question", "Translated Options"), "local": ("Question", "Options")}
ALL_LANGUAGES = "mul"  # BCP 47 for several languages


@final
class CVQA(Task):
    """Share of questions whose option is the nearest of four, in English (`en`) and in the local language (`local`).

    Text i is the question, a space, and option i. The number is that of all questions together, so the task has the one language "mul" (several); every
    subset, a pair of language and country, has a metric of its own: `top1[subset=Swahili-Kenya]`. A long question can push its options out of the model's
    context, so that the four texts are one: with a tokenizer, `options_cut` is the share of questions with an option that is not read to its end.
    """

    def __init__(self, folder: str, tokenizer: str | None = None, context_length: int = 77, name: str = "cvqa") -> None:
        """
        Args:
            folder: with the parquet files; all of `*.parquet` and `data/*.parquet`, in the order of their names.
            tokenizer: folder or SentencePiece file of the model's tokenizer, to count cut options; null: they are not counted.
            context_length: of the model.
        """
        root = need(Path(folder), SOURCE)
        paths = sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])
        if not paths:
            raise ValueError(f"{root}: found no parquet file; {SOURCE}")
        columns = ["ID", "Subset", "Label", *(column for pair in PROTOCOLS.values() for column in pair)]
        rows = [row for path in paths for row in read_questions(path, columns)]
        keys = [str(row["ID"]) for row in rows]
        check_unique(str(root), "ID", keys)
        for row in rows:
            check_question(str(root), row)
        super().__init__(name, ParquetImages(paths, keys), (ALL_LANGUAGES,), {})
        self.label_N = np.array([row["Label"] for row in rows], dtype=np.int64)
        self.subset_N = np.array([subset_name(str(row["Subset"])) for row in rows], dtype=object)
        self.texts_of = {
            protocol: [[f"{row[question]} {option}" for option in row[options]] for row in rows]  # type: ignore[attr-defined]
            for protocol, (question, options) in PROTOCOLS.items()
        }

        words = None if tokenizer is None else Tokenizer(tokenizer, context_length)
        self.cut_of = {} if words is None else {protocol: cut_options(words, own) for protocol, own in self.texts_of.items()}

    def sample(self, num_images: int) -> CVQA:
        part, index = self.part(num_images)
        part.label_N, part.subset_N = self.label_N[index], self.subset_N[index]
        part.texts_of = {protocol: [own[i] for i in index] for protocol, own in self.texts_of.items()}
        part.cut_of = {protocol: cut[index] for protocol, cut in self.cut_of.items()}
        return part

    def texts(self, language: str) -> Sequence[str]:  # noqa: ARG002
        return tuple(dict.fromkeys(text for own in self.texts_of.values() for options in own for text in options))

    def _cosines(self, protocol: str, image_ND: Tensor, text_CD: Tensor) -> Tensor:
        """Of each question's image with its options (N, 4)."""
        row = {text: index for index, text in enumerate(self.texts(ALL_LANGUAGES))}
        index_NO = torch.tensor([[row[text] for text in options] for options in self.texts_of[protocol]], device=text_CD.device)
        return metrics.option_cosines(image_ND, text_CD, index_NO)

    def score(self, language: str, image_ND: Tensor, text_CD: Tensor) -> list[Score]:  # noqa: ARG002
        scores = []
        for protocol in PROTOCOLS:
            guess = first_of_largest(self._cosines(protocol, image_ND, text_CD))
            right = guess == self.label_N
            scores.append(mean_score(protocol + self.suffix, "top1", right, NUM_OPTIONS))
            for subset in sorted(set(self.subset_N)):
                index = np.flatnonzero(self.subset_N == subset)
                scores.append(mean_score(protocol + self.suffix, f"top1[subset={subset}]", right[index], NUM_OPTIONS, index))
            if protocol in self.cut_of:
                scores.append(mean_score(protocol + self.suffix, "options_cut", self.cut_of[protocol], NUM_OPTIONS))
        return scores

    def predictions(self, language: str, image_ND: Tensor, text_CD: Tensor, num_names: int) -> pa.Table:
        """The options of the local question; `class` is the number of the option."""
        cosine_NO = self._cosines("local", image_ND, text_CD)
        score_NK, order_NK = (part[:, :num_names] for part in torch.sort(cosine_NO, dim=1, descending=True, stable=True))
        order = order_NK.cpu().numpy()
        names = [text for options in self.texts_of["local"] for text in options]
        position = order + NUM_OPTIONS * np.arange(len(order))[:, None]
        classes = np.tile(np.arange(NUM_OPTIONS), len(order))
        truth = [options[label] for options, label in zip(self.texts_of["local"], self.label_N, strict=True)]
        right = order == self.label_N[:, None]
        return predictions_table(self.name, language, self.image_set.keys, classes, names, position, score_NK, right, truth)


def cut_options(tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> NDArray[np.bool_]:
    """Whether any option of each question is longer than the context."""
    keep = tokenizer.context_length - tokenizer.num_special
    return np.array([any(len(ids) > keep for ids in tokenizer.encode(options)) for options in texts])


def first_of_largest(score_NO: Tensor) -> IntArray:
    """Index of the largest score of each row; of equal ones the first, and a NaN is never the largest."""
    guess: IntArray = torch.nan_to_num(score_NO, nan=-torch.inf).cpu().numpy().argmax(axis=1)
    return guess


def read_questions(path: Path, columns: Sequence[str]) -> list[dict[str, object]]:
    """Rows of a parquet file without the images. Errors: ValueError for a missing column or what is no parquet file."""
    try:
        with pq.ParquetFile(path) as file:
            missing = [column for column in (*columns, "image") if column not in file.schema_arrow.names]
            if missing:
                raise ValueError(f"{path}: has no column {missing[0]!r}; {SOURCE}")
            rows: list[dict[str, object]] = file.read(columns=list(columns)).to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not a parquet file ({str(error).splitlines()[0]}); {SOURCE}") from error
    return rows


def check_question(where: str, row: dict[str, object]) -> None:
    """Errors: ValueError that names the question without four options or without a label among them."""
    for question, options in PROTOCOLS.values():
        own = row[options]
        if not isinstance(row[question], str) or not isinstance(own, list) or len(own) != NUM_OPTIONS or None in own:
            raise ValueError(f"{where}: question {row['ID']!r} needs a {question!r} and {NUM_OPTIONS} {options!r}, found {own!r}; {SOURCE}")
    if row["Label"] not in range(NUM_OPTIONS):
        hint = "this release hides the labels; take the one that has them" if row["Label"] == -1 else SOURCE
        raise ValueError(f"{where}: question {row['ID']!r} has label {row['Label']!r}, need 0 to {NUM_OPTIONS - 1}; {hint}")


def subset_name(subset: str) -> str:
    """ "Swahili-Kenya" for "('Swahili', 'Kenya')"."""
    try:
        value = ast.literal_eval(subset)
    except (ValueError, SyntaxError):
        return subset
    return "-".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
