"""Wordnets in the layouts of NLTK and of the wn package, read by ourselves and by both libraries."""

from __future__ import annotations

import gzip
import importlib.resources
import json
import lzma
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest
import wn

from mc2.metadata.wordnet import wordnet_files, wordnet_language, wordnet_names

# Codes of the .tab files of OMW 1.4 and the languages they are.
OMW_CODES = {
    "als": "sq", "arb": "ar", "bul": "bg", "cat": "ca", "cmn": "zh", "dan": "da", "ell": "el", "eng": "en", "eus": "eu", "fin": "fi", "fra": "fr",
    "glg": "gl", "heb": "he", "hrv": "hr", "ind": "id", "isl": "is", "ita": "it", "jpn": "ja", "lit": "lt", "nld": "nl", "nno": "nn", "nob": "no",
    "pol": "pl", "por": "pt", "ron": "ro", "slk": "sk", "slv": "sl", "spa": "es", "swe": "sv", "tha": "th", "zsm": "ms",
}  # fmt: skip

TABS = {
    "als": ["qen", "dhelpër e kuqe"],
    "fra": ["renard", "renard_roux", "C'est-à-dire"],
    "cmn": ["狐狸", "美丽+的", "中华_人民_共和国"],
    "nob": ["rev"],
    "nno": ["rev", "raudrev"],
    "ita": ["volpe"],
}
NOUNS = ["fox", "Reynard_the_Fox", "New_York-bight", "7"]


def write_nltk(folder: Path) -> Path:
    """NLTK's corpora: wordnet/ with Princeton's files and omw-1.4/ with the others."""
    licence = "  1 This software and database is being provided to you, the LICENSEE\n"
    tables = {
        "noun": [licence, *(f"{80 * i + 71:08} 05 n 02 {name} 0 {name.lower()}s 1 000 | an animal\n" for i, name in enumerate(NOUNS))],
        "verb": [licence, "00000071 29 v 01 fox 0 000 01 + 02 00 | deceive\n"],
        "adj": [licence, "00000071 00 a 02 vulpine 0 galore(ip) 0 000 | resembling a fox\n", "00000150 00 a 01 A-one(p) 0 000 | first\n"],
        "adv": [licence, "00000071 02 r 0b " + " ".join(f"adverb_{i} 0" for i in range(11)) + " 000 | eleven words\n"],
    }
    princeton, omw = folder / "corpora" / "wordnet", folder / "corpora" / "omw-1.4"
    princeton.mkdir(parents=True)
    for kind, lines in tables.items():
        (princeton / f"data.{kind}").write_text("".join(lines))
        pos = "r" if kind == "adv" else kind[0]
        words = [
            (fields[0], word.partition("(")[0].lower())
            for fields in map(str.split, lines[1:])
            for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        ]
        index = [f"{word} {pos} 1 0 1 0 {offset}  \n" for offset, word in words]
        (princeton / f"index.{kind}").write_text(licence + "".join(index))
        (princeton / f"{kind}.exc").write_text("")
    (princeton / "lexnames").write_text("".join(f"{i:02}\tx\t1\n" for i in range(45)))
    for code, names in TABS.items():
        (omw / code).mkdir(parents=True)
        rows = [f"{i:08}-n\t{'lemma' if i % 2 else f'{code}:lemma'}\t{name}\n" for i, name in enumerate(names)]
        others = [
            f"00000000-n\t{code}:def\t0\tun animal\n",
            f"00000000-n\t{code}:exe\t0\tle renard\n",
            "00000000-n\tlemma:root\troot\n",
            "\n",
            "broken\tlemma\n",
        ]
        (omw / code / f"wn-data-{code}.tab").write_text("".join([f"# A wordnet\t{code}\thttp://x\tlicence\n", *rows, *others]))
    (omw / "iwn").mkdir()
    (omw / "iwn" / "wn-data-ita.tab").write_text("# ItalWordNet\tita\n00000001-n\tita:lemma\tvolpe rossa\r\n")
    return folder


def lmf(language: str, names: list[str]) -> str:
    """A wordnet in the Global WordNet format; every entry has a form that is no lemma."""
    entries = "".join(
        f'<LexicalEntry id="x-{language}-{i}"><Lemma writtenForm={quoteattr(name)} partOfSpeech="n"/><Form writtenForm="no-lemma"/></LexicalEntry>\n'
        for i, name in enumerate(names)
    )
    return f'<Lexicon id="x-{language}" label="x" language="{language}" email="a@b" license="l" version="1.4">\n{entries}</Lexicon>\n'


def resource(*lexicons: str) -> bytes:
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE LexicalResource SYSTEM "http://globalwordnet.github.io/schemas/WN-LMF-1.1.dtd">\n'
        f'<LexicalResource xmlns:dc="https://globalwordnet.github.io/schemas/dc/">\n{"".join(lexicons)}</LexicalResource>\n'
    ).encode()


@pytest.mark.parametrize(
    ("code", "language"), [*OMW_CODES.items(), ("qcn", "zh"), ("fas", "fa"), ("cmn-Hans", "zh"), ("nb", "no"), ("gsw", "als")]
)
def test_codes(code: str, language: str) -> None:
    assert wordnet_language(code) == language


def test_the_31_languages_are_those_of_the_packages() -> None:
    index = tomllib.loads(importlib.resources.files(wn).joinpath("index.toml").read_text())
    lexicons = [row for name, row in index.items() if name.startswith("omw-") and "1.4" in row["versions"]]
    assert {wordnet_language(row["language"]) for row in lexicons} == set(OMW_CODES.values())
    assert len(set(OMW_CODES.values())) == 31


def test_layout_of_nltk(tmp_path: Path) -> None:
    names = wordnet_names(write_nltk(tmp_path))
    assert sorted(names) == ["en", "fr", "it", "nn", "no", "sq", "zh"]
    assert names["sq"] == ["dhelpër e kuqe", "qen"]
    assert names["fr"] == ["C'est-à-dire", "renard", "renard roux"]
    assert names["zh"] == ["中华 人民 共和国", "狐狸", "美丽的"]
    assert names["it"] == ["volpe", "volpe rossa"]
    assert {"fox", "Reynard the Fox", "New York-bight", "7", "vulpine", "galore", "A-one", "adverb 10"} <= set(names["en"])
    assert len(names["en"]) == len({*NOUNS, *(f"{name.lower()}s" for name in NOUNS)}) + 3 + 11


NLTK = """
import json, sys
from nltk.corpus.reader import CorpusReader, WordNetCorpusReader
corpora, codes = sys.argv[1], sys.argv[2:]
WordNetCorpusReader.map_wn = lambda *_: None  # the mapping to other versions of Princeton's needs a file of synset keys
reader = WordNetCorpusReader(corpora + "/wordnet", CorpusReader(corpora + "/omw-1.4", ".*/wn-data-[a-z]+[.]tab"))
for code in codes:
    reader._load_lang_data(code)
names = {code: [name for lemmas in reader._lang_data[code][0].values() for name in lemmas] for code in codes}
lines = [(pos, line) for pos in "nvar" for line in reader._data_file(pos).read().splitlines() if not line.startswith(" ")]
names["eng"] = [name for pos, line in lines for name in reader._synset_from_pos_and_line(pos, line).lemma_names()]
print(json.dumps(names))
"""


def test_nltk_reads_the_same_names(tmp_path: Path) -> None:
    """In a process of its own, because NLTK leaves its files open."""
    names = wordnet_names(write_nltk(tmp_path))
    command = [sys.executable, "-c", NLTK, str(tmp_path / "corpora"), *TABS]
    environment = {**os.environ, "NLTK_DATA": str(tmp_path)}  # NLTK reads nothing below a temporary folder that all may write to
    for code, found in json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout).items():
        mine = set(names[wordnet_language(code)]) - (
            {"volpe rossa"} if code == "ita" else set()
        )  # of ItalWordNet, which NLTK calls ita_iwn
        assert mine == {name.replace("_", " ").replace("+", "") for name in found}


@pytest.mark.parametrize("form", ["xml", "gz", "xz", "zip", "db"])
def test_layouts_of_wn(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = resource(lmf("fr", ["renard", "renard_roux", "A & B"]), lmf("cmn-Hans", ["狐狸", "美丽+的"]))
    folder = tmp_path / "wordnets"
    folder.mkdir()
    source = tmp_path / "omw.xml"
    source.write_bytes(data)
    if form == "db":
        monkeypatch.setattr("wn.config.data_directory", folder)
        wn.add(source, progress_handler=None)
        assert {word.lemma() for word in wn.words(lang="fr")} == {"renard", "renard_roux", "A & B"}  # the library's own reading
        wn._db.clear_connections()
    elif form == "zip":
        with zipfile.ZipFile(folder / "omw.zip", "w") as archive:
            archive.write(source, "omw-1.4/omw-fr/omw-fr.xml")
            archive.writestr("omw-1.4/LICENSE", "text")
    else:
        written = {"xml": data, "gz": gzip.compress(data), "xz": lzma.compress(data)}[form]
        (folder / ("omw.xml" if form == "xml" else f"omw.xml.{form}")).write_bytes(written)
    assert wordnet_names(folder) == {"fr": ["A & B", "renard", "renard roux"], "zh": ["狐狸", "美丽的"]}


def test_other_files_are_left_alone_and_names_are_joined(tmp_path: Path) -> None:
    write_nltk(tmp_path)
    (tmp_path / "framenet.xml").write_text("<frame><Lemma writtenForm='no'/></frame>")
    (tmp_path / "stopwords.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    (tmp_path / "omw-fr.xml").write_bytes(resource(lmf("fr", ["goupil"])))
    assert wordnet_names(tmp_path)["fr"] == ["C'est-à-dire", "goupil", "renard", "renard roux"]
    files = wordnet_files(tmp_path)
    assert files == sorted(files)
    assert len(files) == 4 + len(TABS) + 1 + 3
    shutil.make_archive(str(tmp_path / "again"), "zip", tmp_path, "corpora")
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    (tmp_path / "again.zip").rename(zipped / "corpora.zip")
    assert wordnet_names(zipped)["zh"] == ["中华 人民 共和国", "狐狸", "美丽的"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("omw.xml", resource(lmf("fr", ["renard"]))[:-40], r"omw\.xml: is damaged or no wordnet"),
        ("omw.xml", b"", r"omw\.xml: is damaged or no wordnet"),
        ("omw.xml.gz", gzip.compress(resource(lmf("fr", ["renard"])))[:-20], r"omw\.xml\.gz: is damaged or no wordnet"),
        ("omw.xml.xz", b"no xz", r"omw\.xml\.xz: is damaged or no wordnet"),
        ("omw.xml", resource(lmf("xx-yy", ["renard"])), r"omw\.xml: is damaged or no wordnet .*unknown language code 'xx-yy'"),
        ("wn-data-fra.tab", b"00000001-n\tlemma\t\xff\xfe\n", r"wn-data-fra\.tab: is damaged or no wordnet .*utf-8"),
        ("wn-data-xxx.tab", b"00000001-n\tlemma\tfox\n", r"wn-data-xxx\.tab: is damaged or no wordnet .*unknown language code 'xxx'"),
        ("data.noun", b"measurements of the day\n", r"data\.noun: is damaged or no wordnet"),
        ("wn.db", b"SQLite format 2", r"wn\.db: is damaged or no wordnet"),
        ("omw.zip", b"PK\x03\x04 cut", r"omw\.zip: is no zip file or cut off"),
        ("README", b"", "has no wordnets; need files as wn-data-fra.tab"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        wordnet_names(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: not found; need a folder with wordnets"):
        wordnet_names(tmp_path / "nowhere")
