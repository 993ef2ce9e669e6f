"""The code table: the counts that RECIPE 1.2 gives, and the codes that mean different things to different people."""

from __future__ import annotations

from collections import Counter

import langcodes
import pytest

from mc2 import languages
from mc2.languages import LID176, MORE_WIKIPEDIAS, OTHER, WIKIPEDIAS, wikipedia_language

WITHOUT_A_LANGUAGE = {"bat-smg", "fiu-vro", "map-bms", "roa-rup", "roa-tara"}
PARTS = {
    "be-tarask": "be", "nds-nl": "nds", "zh-classical": "zh", "zh-min-nan": "zh", "zh-yue": "zh",
}  # fmt: skip


def test_counts_of_the_published_table() -> None:
    """329 Wikipedias: 173 of the 176 labels, 5 that join the part before the "-", 5 whose part is no language, 146 others."""
    assert (len(LID176), len(WIKIPEDIAS)) == (176, 329)
    assert len(LID176 & WIKIPEDIAS) == 173
    assert {"cbk", "lrc", "yue"} == LID176 - WIKIPEDIAS
    assert {code for code in WIKIPEDIAS - LID176 if "-" in code} == WITHOUT_A_LANGUAGE | set(PARTS) | {"cbk-zam"}
    assert len(WIKIPEDIAS - LID176 - WITHOUT_A_LANGUAGE - set(PARTS)) == 146


def test_every_wikipedia_belongs_to_one_language() -> None:
    found = {code: wikipedia_language(code) for code in WIKIPEDIAS}
    assert {code for code, language in found.items() if language == code} == LID176 - {"cbk", "lrc", "yue"}
    assert {code: language for code, language in found.items() if language not in (code, OTHER)} == {**PARTS, "cbk-zam": "cbk"}
    assert Counter(found.values())[OTHER] == 146 - 1 + 5  # without cbk-zam, with the five
    assert Counter(found.values())["zh"] == 4


def test_both_spellings_and_the_database_of_be_tarask() -> None:
    for code in WIKIPEDIAS:
        assert wikipedia_language(code) == wikipedia_language(code.replace("-", "_"))
    assert wikipedia_language("be_x_old") == "be"


@pytest.mark.parametrize("code", ["commons", "", "zh-", "wikidatawiki", "cbk", "yue", "EN"])
def test_what_is_no_wikipedia(code: str) -> None:
    assert wikipedia_language(code) is None


def test_closed_and_new_wikipedias_are_known_too() -> None:
    assert not WIKIPEDIAS & MORE_WIKIPEDIAS
    assert wikipedia_language("lrc") == "lrc"
    assert {wikipedia_language(code) for code in MORE_WIKIPEDIAS - {"lrc"}} == {OTHER}


def test_a_finer_language_identification_keeps_languages_apart() -> None:
    known = {"zh", "yue", "nan", "lzh", "sgs", "zu", "nrm", "be"}
    codes = ("zh_classical", "zh_min_nan", "zh_yue", "bat_smg", "fiu_vro", "zu", "be_tarask", "simple")
    assert [wikipedia_language(code, known) for code in codes] == ["lzh", "nan", "zh", "sgs", "other", "zu", "be", "other"]
    assert wikipedia_language("nrm", known) == "other"  # Norman, but ISO 639 has nrm for Narom
    assert wikipedia_language("nrm", {"nrf"}) == "nrf"
    assert wikipedia_language("knc", {"kr"}) == "kr"  # Central Kanuri, opened in 2024


def test_own_languages_of_wikipedias_are_languages() -> None:
    for language in languages.WIKIPEDIA_LANGUAGES.values():
        assert langcodes.Language.get(language).is_valid()


@pytest.mark.parametrize(
    ("code", "name", "script"),
    [("de", "German", "Latn"), ("als", "Alemannic", "Latn"), ("sh", "Serbo-Croatian", "Latn"), (OTHER, "other languages", "Zyyy")],
)
def test_names_and_scripts(code: str, name: str, script: str) -> None:
    assert (languages.canonical(code), languages.metadata_code(code)) == (code, code)
    assert (languages.name(code), languages.script(code)) == (name, script)
