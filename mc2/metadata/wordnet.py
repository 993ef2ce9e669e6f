"""Lemma names of the wordnets on disk, by language: Open Multilingual WordNet 1.4 has 31 languages with Princeton WordNet's English (RECIPE 1.2).

Read are, in a folder and all folders below it, in the layouts that people have:
  wn-data-<lang>.tab, in NLTK's omw-1.4/ and in OMW's own archive: "offset-pos TAB lemma TAB name"
  data.noun, data.verb, data.adj, data.adv: Princeton's files, in NLTK's wordnet/ (their names have capitals, those of index.noun have not)
  *.xml, *.xml.gz, *.xml.xz in the Global WordNet format: what the wn package takes, omw-en.xml in omw-1.4.tar.xz
  wn.db: the data directory of the wn package (~/.wn_data)
and the same inside *.zip, as NLTK's downloader leaves them (nltk_data/corpora/omw-1.4.zip).
"""

from __future__ import annotations

import gzip
import lzma
import re
import sqlite3
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import IO
from xml.etree import ElementTree

from mc2 import languages

# Codes that wordnets use otherwise than lid.176: "als" is Albanian (Tosk) here and Alemannic there, "qcn" is the Chinese Wordnet of Taiwan.
_LANGUAGES = {"als": "sq", "qcn": "zh"}

_TAB = re.compile(r"wn-data-(\w+)\.tab")
_PRINCETON = re.compile(r"data\.(noun|verb|adj|adv)")
_XML = re.compile(r".+\.xml(\.gz|\.xz)?")

_DAMAGE = (OSError, EOFError, ValueError, IndexError, lzma.LZMAError, zlib.error, ElementTree.ParseError, sqlite3.Error, zipfile.BadZipFile)

Names = Iterator[tuple[str, str]]  # (code of a language, name)


def wordnet_language(code: str) -> str:
    """The metadata language of a wordnet's code, OMW's three letters or BCP 47. Errors: ValueError for what is no language."""
    return languages.metadata_code(_LANGUAGES.get(code, code))


def wordnet_names(folder: str | Path) -> dict[str, list[str]]:
    """Lemma names of all wordnets in a folder by metadata language, sorted, each once; "_" is a space, "+" is removed (RECIPE 1.3).

    A language in several wordnets or layouts gets the names of all. Errors: ValueError that names the folder without wordnets, or a damaged file.
    """
    found: defaultdict[str, set[str]] = defaultdict(set)
    for where, names in _wordnets(Path(folder)):
        try:
            for code, name in names:
                if cleaned := name.replace("_", " ").replace("+", "").strip():
                    found[wordnet_language(code)].add(cleaned)
        except _DAMAGE as error:
            raise ValueError(f"{where}: is damaged or no wordnet ({error}); fetch it again or take it out of the folder") from error
    if not found:
        raise ValueError(
            f"{folder}: has no wordnets; need files as wn-data-fra.tab, data.noun, omw-fr.xml or wn.db, at any depth or in a zip file"
        )
    return {language: sorted(found[language]) for language in sorted(found)}


def wordnet_files(folder: str | Path) -> list[Path]:
    """The files that `wordnet_names` reads, sorted: their names and sizes stand for it. Errors: ValueError if the folder is not there."""
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: not found; need a folder with wordnets")
    return sorted(
        path
        for path in Path(folder).rglob("*")
        if path.is_file()
        and (path.name == "wn.db" or path.suffix == ".zip" or any(p.fullmatch(path.name) for p in (_TAB, _PRINCETON, _XML)))
    )


def _wordnets(folder: Path) -> Iterator[tuple[str, Names]]:
    """Name and contents of every file that can be a wordnet."""
    for path in wordnet_files(folder):
        if path.suffix == ".zip":
            yield from _zipped(path)
        elif path.name == "wn.db":
            yield str(path), _database_names(path)
        else:
            with open(path, "rb") as file:
                yield str(path), _names(path.name, file)


def _zipped(path: Path) -> Iterator[tuple[str, Names]]:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: is no zip file or cut off ({error}); fetch it again or take it out of the folder") from error
    with archive:
        for member in sorted(archive.namelist()):
            with archive.open(member) as file:
                yield f"{path}/{member}", _names(member.rpartition("/")[2], file)


def _names(file_name: str, file: IO[bytes]) -> Names:
    if match := _TAB.fullmatch(file_name):
        yield from _tab_names(file, match[1])
    elif _PRINCETON.fullmatch(file_name):
        yield from _princeton_names(file)
    elif match := _XML.fullmatch(file_name):
        with gzip.open(file) if match[1] == ".gz" else lzma.open(file) if match[1] == ".xz" else nullcontext(file) as opened:
            yield from _xml_names(opened)


def _tab_names(file: IO[bytes], code: str) -> Names:
    """Rows are "00001740-n TAB lemma TAB name" or "... TAB fra:lemma TAB name"; roots, definitions and examples have other labels."""
    for line in file:
        fields = line.decode().rstrip("\r\n").split("\t")
        if not line.startswith(b"#") and len(fields) >= 3 and fields[1] in ("lemma", f"{code}:lemma"):
            yield code, fields[-1]


def _princeton_names(file: IO[bytes]) -> Names:
    """Rows are "offset lexicographer-file type number-of-words word id word id ...", the number in hexadecimal; lines of the licence begin with a space."""
    for line in file:
        if not line.startswith(b" ") and (fields := line.decode().split()):
            for word in fields[4 : 4 + 2 * int(fields[3], 16) : 2]:
                yield "eng", re.sub(r"\((a|p|ip)\)$", "", word)  # where an adjective stands: "galore(ip)"


def _xml_names(file: IO[bytes] | gzip.GzipFile) -> Names:
    steps = ElementTree.iterparse(file, events=("start",))
    if next(steps)[1].tag != "LexicalResource":
        return  # XML of something else
    lexicon = ElementTree.Element("")
    code = ""
    for _, element in steps:
        if element.tag == "Lexicon":
            lexicon, code = element, element.get("language", "")
        elif element.tag == "Lemma":
            yield code, element.get("writtenForm", "")
            lexicon.clear()  # what is read would stay in memory


def _database_names(path: Path) -> Names:
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        yield from database.execute("SELECT language, form FROM forms JOIN lexicons ON lexicons.rowid = forms.lexicon_rowid WHERE rank = 0")
