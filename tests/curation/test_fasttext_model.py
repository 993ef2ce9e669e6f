"""The reader and the compiled code against the fastText library itself (package fasttext-predict), on the packaged model and on files written here."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fasttext
import numpy as np
import pyarrow as pa
import pytest
import wordfreq
from numpy.typing import NDArray

from mc2.curation.fasttext_model import FastTextModel
from mc2.curation.language_id import LanguageIdentifier, LanguageSettings, model_path
from tests.curation.fasttext_files import write_model

ODD = [
    "", " ", "\t\r\v\f\0", "a\0b", "a\u00a0b\u2028c\u3000d\u200be", "\ufeffabc", "🦊🏽‍🚀 👩‍👩‍👧", "𝕳𝖊𝖑𝖑𝖔 𠀋𪚥", "é e\u0301", "__label__en hello", "__label__", "__label__nothing",
    "hello </s> welt", "</s>", "</s> </s>", "x" * 9000, "héllo wörld " * 900, "的" * 3000, "\U0010ffff\ue000", "12345 !?", "ﷺ", "a" * 64 + "\x7f\x1f",
]  # fmt: skip


def sentences(count: int) -> list[str]:
    """Texts of 1 to 12 common words of 42 languages, now and then with a word of another."""
    draw = random.Random(0)
    words = [wordfreq.top_n_list(code, 3000, "small") for code in sorted(wordfreq.available_languages("small"))]
    return [
        " ".join(draw.choice(words[(i if draw.random() < 0.9 else i * 7) % len(words)]) for _ in range(draw.randint(1, 12)))
        for i in range(count)
    ]


def library_scores(path: Path, labels: Sequence[str], texts: Sequence[str]) -> NDArray[np.float64]:
    """(texts x labels) of the library, 0 where it lists no score."""
    predict: Any = fasttext.load_model(str(path)).predict
    scores = np.zeros((len(texts), len(labels)))
    column = {f"__label__{label}": i for i, label in enumerate(labels)}
    for row, text in enumerate(texts):
        for label, score in zip(*predict(text, -1, 0.0), strict=True):
            scores[row, column[label]] = score
    return scores


def own_scores(path: Path | None, labels: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
    identifier = LanguageIdentifier(labels, LanguageSettings(model=path, scripts=False, words=False))
    found = identifier.probabilities(pa.array(texts, pa.string()))
    return found[:, [identifier.languages.index(label) for label in labels]]


def test_the_packaged_model_agrees_with_the_library() -> None:
    texts = sentences(3000) + ODD
    labels = FastTextModel.open(model_path(None)).labels
    need = library_scores(model_path(None), labels, texts)
    found = own_scores(None, labels, texts)
    assert len(labels) == 176
    np.testing.assert_allclose(found, need, atol=2e-5)  # the cut at 1e-5 falls either way
    assert (found.argmax(axis=1) == need.argmax(axis=1)).mean() > 0.9999  # equal scores may fall either way


LABELS = ("de", "en", "fr", "ru", "zh", "ja", "ar")
WORDS = ("</s>", "der", "the", "le", "лиса", "狐", "naïve", "🦊")
TEXTS = ["der Fuchs the fox", "лиса и 狐 naïve 🦊", "le le le", "unbekannt", *ODD[:15]]


@pytest.mark.parametrize("loss", ["tree", "softmax"])
@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize(("word_ngrams", "minn", "maxn"), [(1, 2, 4), (3, 1, 5), (2, 0, 0)])
def test_other_models_agree_with_the_library(tmp_path: Path, loss: Any, quantised: bool, word_ngrams: int, minn: int, maxn: int) -> None:
    path = write_model(tmp_path / "m.bin", LABELS, WORDS, loss=loss, quantised=quantised, word_ngrams=word_ngrams, minn=minn, maxn=maxn)
    need = library_scores(path, LABELS, TEXTS)
    assert need.max() > 0.5
    np.testing.assert_allclose(own_scores(path, LABELS, TEXTS), need, atol=2e-5)


def test_a_model_without_the_word_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.bin", LABELS, WORDS[1:])
    np.testing.assert_allclose(own_scores(path, LABELS, TEXTS[:3]), library_scores(path, LABELS, TEXTS[:3]), atol=2e-5)


def test_files_that_are_no_model(tmp_path: Path) -> None:
    good = write_model(tmp_path / "good.bin", LABELS, WORDS).read_bytes()
    bad = tmp_path / "bad.bin"
    for length in (8, 40, 90, 200, len(good) - 1):
        bad.write_bytes(good[:length])
        with pytest.raises(ValueError, match=r"bad\.bin: is cut off or damaged"):
            FastTextModel.open(bad)
    for data in (b"", b"PK\3\4 a zip file", good[:4] + b"\x0b" + good[5:]):
        bad.write_bytes(data)
        with pytest.raises(ValueError, match=r"bad\.bin: found no fastText model of version 12"):
            FastTextModel.open(bad)
    bad.write_bytes(good[:32] + b"\2" + good[33:])
    with pytest.raises(ValueError, match=r"found model 3 with loss 2, need a classifier"):
        FastTextModel.open(bad)
    with pytest.raises(ValueError, match=r"nowhere\.bin: the language-identification model is not there"):
        LanguageIdentifier(["de"], LanguageSettings(model=tmp_path / "nowhere.bin"))


def test_code_that_cannot_be_kept_on_the_disk_gives_the_same() -> None:
    """Code without a file has no place beside it for numba's cache: the decorator of numba alone refuses it."""
    program = """
import numba
from mc2.curation.compiled import compiled
def twice(x): return 2 * x
try: numba.njit(cache=True)(twice)
except RuntimeError: print("refused")
print(compiled(twice)(21))
"""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    ).stdout
    assert output.split() == ["refused", "42"]
