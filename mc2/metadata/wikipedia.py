"""Which files hold the text of which Wikipedia, and the parts that they are read in.

Known layouts: dumps `dewiki-20240501-pages-articles[-multistream][N].xml[-pXpY][.bz2]`, the language in the name; folders `dewiki.../AA/wiki_00[.bz2]` of
wikiextractor; parquet `20231101.de/*.parquet` (Hugging Face). A path may also be given with its language: `de=PATH`.
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
from bz2 import BZ2Decompressor
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mc2 import languages

PART_BYTES = 1 << 26  # of a multistream dump: about two minutes of work

Form = Literal["dump", "wikiextractor", "parquet"]

_DUMP = re.compile(
    r"(?P<wiki>[a-z0-9_]+)-(?P<date>\d+|latest)-pages-articles(?:-multistream)?(?P<number>\d*)\.xml(?P<pages>-p\d+p\d+)?(?P<bz2>\.bz2)?"
)
_WIKIEXTRACTOR = re.compile(r"wiki_\d\d+(?:\.bz2)?")
_FOLDER = re.compile(r"(?:\d{8}\.)?(?P<code>[a-z]+?(?:[-_][a-z]+?)*?)(?:wiki(?:-.*)?)?")
_NEED = (
    "need dumps named as dewiki-20240501-pages-articles.xml.bz2, wikiextractor's folders below one named dewiki, or parquet below one named 20231101.de; "
    "or say the language: de=PATH"
)


@dataclass(frozen=True)
class Part:
    """What is read in one go: a dump or a range of its bz2 streams, a folder of wikiextractor's files, or a parquet file.

    code: of the Wikipedia, with "_" ("zh_yue"). start, end: bytes of the file, whole streams of a multistream dump.
    """

    name: str
    code: str
    form: Form
    paths: tuple[Path, ...]
    start: int
    end: int


@dataclass(frozen=True)
class _File:
    path: Path
    name: str  # below the folder that the given path lies in: no two files of a Wikipedia have the same
    code: str
    form: Form
    source: str  # files of one code come from one source, or the text would be counted twice


def find_parts(sources: Sequence[str | Path], part_bytes: int = PART_BYTES) -> list[Part]:
    """The parts of all Wikipedias in files and folders, sorted by name.

    Errors: ValueError for a path that is missing or holds nothing known, a file without a known language, a Wikipedia that is there twice.
    """
    files = [file for source in sources for file in _files(*_given(source))]
    sources_of: dict[str, dict[str, Path]] = defaultdict(dict)
    for file in files:
        sources_of[file.code].setdefault(file.source, file.path)
    for code, found in sources_of.items():
        if len(found) > 1:
            raise ValueError(
                f"wikipedia: found {code!r} twice, {' and '.join(str(path) for path in sorted(found.values())[:2])}; give one of them"
            )
    if len({file.path.resolve() for file in files}) < len(files):
        raise ValueError("wikipedia: found the same file twice in the given paths; give every path once")
    return sorted(_parts(files, part_bytes), key=lambda part: (part.code, part.paths, part.start))


def wikipedia_code(code: str, where: str | Path) -> str:
    """The code with "_". Errors: ValueError that says where the code of no Wikipedia was found."""
    if languages.wikipedia_language(code) is None:
        raise ValueError(f"{where}: found the wiki {code!r}, which is no Wikipedia that we know; {_NEED}")
    return code.replace("-", "_")


def _given(source: str | Path) -> tuple[Path, str | None]:
    """A path and the language that it was given with."""
    code, equals, rest = str(source).partition("=")
    if equals and "/" not in code and not Path(source).exists():
        return Path(rest), wikipedia_code(code, source)
    return Path(source), None


def _files(root: Path, given: str | None) -> Iterator[_File]:
    if not root.exists():
        raise ValueError(f"{root}: not found; {_NEED}")
    below = (Path(folder) / name for folder, names in _walk(root) for name in names)
    paths = [root] if root.is_file() else list(below)
    found = [file for path in sorted(paths) if (file := _known_file(path, root, given))]
    if not found:
        raise ValueError(f"{root}: holds no text of a Wikipedia; {_NEED}")
    yield from found


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Folders and the names of their files, without what a stage of ours has written there (counts of words are parquet, too)."""
    for folder, folders, names in os.walk(root, followlinks=True):
        if "inputs.json" in names:
            folders.clear()
        else:
            yield folder, names


def _known_file(path: Path, root: Path, given: str | None) -> _File | None:
    name, shown = path.name, str(path.relative_to(root.parent))
    if match := _DUMP.fullmatch(name):
        wiki = match["wiki"]
        code = given or wikipedia_code(wiki.removesuffix("wiki") if wiki.endswith("wiki") else wiki, path)
        kind = re.sub(r"\d*\.xml.*", "", name) + (" in numbered files" if match["number"] else "") + (match["bz2"] or "")
        return _File(path, shown, code, "dump", f"{path.parent / kind}")
    if given and name.endswith((".xml", ".xml.bz2")):
        return _File(path, shown, given, "dump", str(path.parent))
    form: Form
    if _WIKIEXTRACTOR.fullmatch(name):
        form = "wikiextractor"
    elif name.endswith(".parquet"):
        form = "parquet"
    else:
        return None
    code, folder = (given, root) if given else _code_of_folder(path, root)
    return _File(path, shown, code, form, f"{form} {folder}")


def _code_of_folder(path: Path, root: Path) -> tuple[str, Path]:
    """The language that the nearest folder (or the file itself, for parquet) is named after, and that folder."""
    for folder in (path, *path.parents):
        match = _FOLDER.fullmatch(folder.name.removesuffix(".parquet"))
        if match and languages.wikipedia_language(match["code"]) is not None:
            return match["code"].replace("-", "_"), folder
        if folder == root:
            break
    raise ValueError(f"{path}: its language is not in its name or the names of its folders below {root}; {_NEED}")


def _parts(files: Sequence[_File], part_bytes: int) -> Iterator[Part]:
    folders: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for file in files:
        if file.form == "wikiextractor":
            folders[file.code, os.path.dirname(file.name)].append(file.path)
            continue
        is_bz2 = file.form == "dump" and file.path.suffix == ".bz2"
        bounds = stream_bounds(file.path, part_bytes) if is_bz2 else [0, file.path.stat().st_size]
        for number, (start, end) in enumerate(itertools.pairwise(bounds), 1):
            piece = f" ({number} of {len(bounds) - 1})" if len(bounds) > 2 else ""
            yield Part(f"{file.code}: {file.name}{piece}", file.code, file.form, (file.path,), start, end)
    for (code, folder), paths in folders.items():
        yield Part(f"{code}: {folder}", code, "wikiextractor", tuple(sorted(paths)), 0, sum(path.stat().st_size for path in paths))


def stream_bounds(path: Path, part_bytes: int = PART_BYTES) -> list[int]:
    """Offsets that cut a bz2 file before streams that begin with a page, `part_bytes` apart: [0, size] for a file of one stream.

    A multistream dump is a row of bz2 streams of a hundred pages each, so that pages can be read from the middle; other files of many streams are not cut.
    """
    size = path.stat().st_size
    bounds = [0]
    if size == 0:
        return [0, 0]
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        magic = data[:4] + b"1AY&SY"  # header and first block of a stream, 80 bits: never by chance
        while (offset := data.find(magic, bounds[-1] + part_bytes)) > 0:
            if not _begins_with_page(data, offset):
                break
            bounds.append(offset)
    return [*bounds, size]


def _begins_with_page(data: mmap.mmap, offset: int) -> bool:
    try:
        return BZ2Decompressor().decompress(data[offset : offset + (1 << 20)], 64).lstrip().startswith(b"<page>")
    except OSError:
        return False
