"""Language identification with the packaged model."""

from __future__ import annotations

import pyarrow as pa
import pytest

from mc2 import languages
from mc2.curation.language_id import DROPS, LABEL_PREFIX, LanguageIdentifier, LanguageSettings, _model, known_languages

ALL = sorted(languages.LID176)


def test_the_code_table_has_exactly_the_labels_of_the_model() -> None:
    """The model says only what it holds likely: probe it with words of many languages, each answer must be in the table."""
    labels = {
        label
        for word in ("a", "в", "的", "の", "의", "ال", "का", "ที่", "და", "և", "het", "ikke", "ja", "az", "la")
        for label in _model().predict(word, -1, 0.0)[0]
    }
    assert len(labels) > 60
    assert {label.removeprefix(LABEL_PREFIX) for label in labels} <= languages.LID176


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("the brown fox jumps over the fence", "en"),
        ("der braune Fuchs springt über den Zaun", "de"),
        ("茶色のキツネがフェンスを飛び越える", "ja"),
        ("рыжая лиса прыгает через забор", "ru"),
        ("line one of the text\nline two of the text\n", "en"),
        ("der Fuchs\r\nist braun\x00", "de"),
    ],
)
def test_languages(caption: str, language: str) -> None:
    found, score, drop = LanguageIdentifier(ALL)(caption)
    assert (found, drop) == (language, None)
    assert 0.5 < score <= 1.001


def test_labels_that_share_metadata() -> None:
    assert known_languages({"zh", "de"}) == {f"{LABEL_PREFIX}{label}": code for label, code in [("de", "de"), ("yue", "zh"), ("zh", "zh")]}


def test_only_candidates_win() -> None:
    identify = LanguageIdentifier(["no", "zh"])
    assert identify("en rød rev hopper over gjerdet")[0] == "no"
    assert LanguageIdentifier(["da", "zh"])("en rød rev hopper over gjerdet")[0] == "da"


def test_reasons_of_drops() -> None:
    identify = LanguageIdentifier(["de"], LanguageSettings(min_score=0.5))
    language, _, drop = identify("рыжая лиса прыгает через забор")
    assert (language, drop) == ("ru", "no_metadata")
    language, score, drop = LanguageIdentifier(ALL, LanguageSettings(min_score=0.9))("12345")
    assert drop == "unknown_language"
    assert score < 0.9
    assert language in languages.LID176


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found min_score 2.*between 0 and 1"):
        LanguageSettings(min_score=2)
    with pytest.raises(ValueError, match="none of the languages of the metadata is known"):
        LanguageIdentifier(["tlh"])


def test_a_batch_says_what_each_caption_says() -> None:
    captions = ["der braune Fuchs", "рыжая лиса прыгает через забор", "12345", "the brown fox jumps over the fence"]
    identify = LanguageIdentifier(["de", "en"], LanguageSettings(min_score=0.3))
    found = identify.identify(pa.array(captions))
    rows = zip([identify.languages[i] for i in found.language], found.score, [DROPS[i] for i in found.drop], strict=True)
    for caption, row in zip(captions, rows, strict=True):
        language, score, drop = identify(caption)
        assert row == (language, pytest.approx(score, abs=1e-6), drop)
