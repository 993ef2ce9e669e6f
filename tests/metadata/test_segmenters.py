"""Every language without spaces: its package gives words, without a network, and is named if it is missing."""

from __future__ import annotations

import importlib.metadata
import socket
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from mc2.metadata import segmenters
from mc2.metadata.segmenters import PACKAGES, segmenter_name, words
from mc2.metadata.tokens import BREAK, simple_words

# Text -> words, with Latin words among them
TEXTS = {
    "ja": ("東京都は日本の首都である。New York", ["東京", "都", "は", "日本", "の", "首都", "で", "ある", BREAK, "New", "York", BREAK]),
    "km": ("ភ្នំពេញជារាជធានី New York។", ["ភ្នំពេញ", "ជា", "រាជធានី", "New", "York", BREAK]),
    "lo": ("ວຽງຈັນເປັນນະຄອນຫຼວງ New York", ["ວຽງຈັນ", "ເປັນ", "ນະຄອນຫຼວງ", "New", "York", BREAK]),
    "my": ("မြန်မာနိုင်ငံသည် New York။", ["မြန်မာနိုင်ငံ", "သည်", "New", "York", BREAK]),
    "th": ("กรุงเทพมหานครเป็นเมืองหลวง New York", ["กรุงเทพมหานคร", "เป็น", "เมืองหลวง", "New", "York", BREAK]),
    "zh": ("北京大学位于中国，New York", ["北京大学", "位于", "中国", BREAK, "New", "York", BREAK]),
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a segmenter asked for the network")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("code", TEXTS)
def test_words(code: str) -> None:
    text, expected = TEXTS[code]
    assert words(text, code) == expected
    assert segmenter_name(code).startswith(PACKAGES[code][0])


@pytest.mark.parametrize("code", PACKAGES)
def test_icu_has_words_for_all(code: str) -> None:
    text = TEXTS.get(code, ("བོད་ནི་ཨེ་ཤ་ཡའི།" if code in ("bo", "dz") else TEXTS["zh"][0], []))[0]
    found = words(text, code, "icu")
    assert "".join(found).replace(BREAK, "") == "".join(simple_words(text)).replace(BREAK, "")
    assert 2 <= len(found) < len(simple_words(text))


def test_variants_use_the_segmenter_of_their_language() -> None:
    assert words(TEXTS["zh"][0], "zh_yue") == TEXTS["zh"][1]
    assert words(TEXTS["ja"][0], "ryu") == TEXTS["ja"][1]


def test_spaced_languages_need_none() -> None:
    assert segmenter_name("de") == segmenter_name("ko") == segmenter_name("zh", "simple") == "simple"
    assert words("Das Haus.", "de") == ["Das", "Haus", BREAK]


def test_long_words_and_long_pieces() -> None:
    assert words(f"a {'x' * 257} b {'y' * 256}", "de") == ["a", BREAK, "b", "y" * 256]
    assert len(words("東京" * 40_000, "ja")) == 40_001  # Sudachi refuses more than 49,149 bytes at once


def test_tibetan_needs_the_dictionary_of_botok_and_never_downloads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"botok has no dictionary in .*general; fetch it once .* or give --segmenter icu"):
        segmenter_name("bo")
    pack = tmp_path / segmenters.BOTOK_PACK
    for folder, name, text in (
        ("dictionary/words", "words.tsv", "བཀྲ་ཤིས་\tNOUN\t\t\t\nབདེ་ལེགས་\tNOUN\t\t\t\n"),
        ("dictionary/rules", "rules.tsv", ""),
        ("adjustments/rules", "rules.tsv", ""),
    ):
        (pack / folder).mkdir(parents=True)
        (pack / folder / name).write_text(f"# form\tpos\tlemma\tsense\tfreq\n{text}" if text else "", encoding="utf-8")
    segmenters._load.cache_clear()
    assert words("བཀྲ་ཤིས་བདེ་ལེགས།", "bo") == ["བཀྲ་ཤིས་", "བདེ་ལེགས", BREAK]
    assert segmenter_name("dz").startswith("botok 1")
    assert segmenter_name("dz") != segmenter_name("dz", "icu")


MODULES = {
    "botok": "botok",
    "sudachipy": "sudachipy",
    "khmer-nltk": "khmernltk",
    "laonlp": "laonlp.tokenize",
    "icu4py": "icu4py.breakers",
    "pythainlp": "pythainlp.tokenize.nlpo3",
    "jieba": "jieba",
}


@pytest.mark.parametrize("code", PACKAGES)
def test_a_missing_package_is_named(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(segmenters, "version", missing)
    with pytest.raises(
        ImportError, match=rf"words of Wikipedia '{code}' need the package {PACKAGES[code][0]}.* run `pip install 'mc2\[segment\]'`"
    ):
        segmenter_name(code)
    segmenters._load.cache_clear()
    monkeypatch.setitem(sys.modules, MODULES[PACKAGES[code][0]], None)
    with pytest.raises(ImportError, match=rf"words of Wikipedia '{code}' need .*pip install 'mc2\[segment\]'"):
        words("x", code)
