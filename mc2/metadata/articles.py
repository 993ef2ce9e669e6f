"""The articles of a part of a Wikipedia as plain text: dump, wikiextractor's output, or parquet."""

from __future__ import annotations

import bz2
import html
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from mc2 import languages
from mc2.metadata.wikipedia import Part
from mc2.metadata.wikitext import hidden_prefixes, plain_text


class Article(NamedTuple):
    title: str
    text: str


def articles(part: Part) -> Iterator[Article]:
    """The articles of a part, one after the other: memory for a few of them.

    Pages outside of the article namespace and redirects are skipped. Errors: ValueError with the file's name for what is damaged or cut off: nothing that was
    read of this part may be used then.
    """
    read = {"dump": _dump, "wikiextractor": _wikiextractor, "parquet": _parquet}[part.form]
    number = 0
    try:
        for article in read(part):
            number += 1
            yield article
    except (ElementTree.ParseError, OSError, EOFError, pa.ArrowException, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{part.paths[0] if len(part.paths) == 1 else part.name}: is damaged or cut off after {number:,} articles ({error}); compare its checksum and get "
            "it again (nothing of it was counted)"
        ) from error


# --- dumps --------------------------------------------------------------------------------------------------------------


def _dump(part: Part) -> Iterator[Article]:
    path = part.paths[0]
    head = _site_info(path)
    names = re.findall(rb'<namespace key="(?:-2|6|14)"[^>]*>([^<]*)<', head)
    hidden = hidden_prefixes((html.unescape(name.decode()) for name in names), languages.WIKIPEDIAS)
    with open(path, "rb") as file:
        whole: Any = _Chain(head if part.start else b"", _opened(file, part), b"" if part.end == path.stat().st_size else b"</mediawiki>")
        for title, markup in _pages(whole):
            yield Article(title, plain_text(markup, hidden))


def _pages(file: IO[bytes]) -> Iterator[tuple[str, str]]:
    """Title and source of every article of a dump in XML; memory for one page."""
    events = ElementTree.iterparse(file, events=("start", "end"))
    _, root = next(events)
    for event, element in events:
        if event == "end" and element.tag.rpartition("}")[2] == "page":
            redirect = element.find("{*}redirect") is not None
            if not redirect and element.findtext("{*}ns") == "0" and element.findtext("{*}revision/{*}model", "wikitext") == "wikitext":
                yield element.findtext("{*}title") or "", element.findtext("{*}revision/{*}text") or ""
            root.clear()


def _opened(file: IO[bytes], part: Part) -> IO[bytes]:
    if part.paths[0].suffix != ".bz2":
        return file
    return bz2.BZ2File(io.BufferedReader(_Slice(file, part.start, part.end)))


def _site_info(path: Path) -> bytes:
    """The beginning of a dump until its first page: with the names of the namespaces."""
    with bz2.open(path) if path.suffix == ".bz2" else open(path, "rb") as file:
        head: bytes = file.read(1 << 18)
    return head[: head.index(b"<page>")] if b"<page>" in head else head


class _Slice(io.RawIOBase):
    """The bytes from `start` to `end` of a file."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self.file, self.left = file, end - start
        file.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(min(self.left, len(buffer)))
        buffer[: len(data)] = data
        self.left -= len(data)
        return len(data)


class _Chain:
    """Bytes, a file and bytes, read as one."""

    def __init__(self, head: bytes, file: IO[bytes], tail: bytes) -> None:
        self.files = [io.BytesIO(head), file, io.BytesIO(tail)]

    def read(self, size: int) -> bytes:
        while self.files:
            if data := self.files[0].read(size):
                return data
            self.files.pop(0)
        return b""


# --- wikiextractor ------------------------------------------------------------------------------------------------------

_DOC = re.compile(r'<doc .*?title="(.*)">')


def _wikiextractor(part: Part) -> Iterator[Article]:
    for path in part.paths:
        with bz2.open(path, "rt", encoding="utf-8") if path.suffix == ".bz2" else open(path, encoding="utf-8") as lines:
            yield from _docs(lines, path)


def _docs(lines: Iterator[str], path: Path) -> Iterator[Article]:
    """Articles of `<doc id= url= title=> ... </doc>`, or of one JSON object a line; the title that begins a text is not part of it."""
    title, text = None, list[str]()
    for line in lines:
        if title is None and line.startswith("{"):
            value = json.loads(line)
            if not isinstance(value.get("text"), str):
                raise OSError(f"{path.name}: a line without a text")
            yield Article(_readable(str(value.get("title", ""))), _readable(html.unescape(value["text"])))
        elif title is None and (start := _DOC.match(line)):
            title = html.unescape(start[1])
        elif title is not None and line.rstrip() == "</doc>":
            yield Article(title, html.unescape("".join(text)).removeprefix(f"{title}\n"))
            title, text = None, []
        elif title is not None:
            text.append(line)
        elif line.strip():
            raise OSError(f"{path.name}: a line outside of <doc> ... </doc>")
    if title is not None:
        raise OSError(f"{path.name}: ends inside of an article")


def _readable(text: str) -> str:
    """Half a character ("\\ud83d" in JSON) as "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


# --- parquet ------------------------------------------------------------------------------------------------------------


def _is_text(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (types.is_string, types.is_large_string, types.is_string_view, types.is_null))


def _parquet(part: Part) -> Iterator[Article]:
    with pq.ParquetFile(part.paths[0]) as file:
        columns = [name for name in ("title", "text") if name in file.schema_arrow.names]
        if "text" not in columns:
            raise ValueError(f"{part.paths[0]}: found the columns {', '.join(file.schema_arrow.names)}, need one named text")
        kinds = {name: file.schema_arrow.field(name).type for name in columns}
        for name, kind in kinds.items():
            if not _is_text(kind.value_type if types.is_dictionary(kind) else kind):
                raise ValueError(f"{part.paths[0]}: found {kind} in the column {name}, need strings; write it again as text")
        for batch in file.iter_batches(batch_size=256, columns=columns):
            rows = batch.to_pydict()
            for title, text in zip(rows.get("title", [""] * batch.num_rows), rows["text"], strict=True):
                yield Article(title or "", text or "")
