"""Pairs of a Common Crawl WAT file: the images that web pages link to, with the texts that stand beside the link (RECIPE 1.5). No images, only their URLs.

A record of the file is the JSON of one page, a gzip member of its own. Links whose path begins with IMG@/src give the URL, resolved against the page (its
<base> if it has one); alt, title and data-image-title give the captions, newlines as spaces, stripped, each text once. The key is `url_id` of the URL. An
image that a page links to several times is one pair with all of their captions; on a later page of the file it is a duplicate. The hint is the language
that the page declares (<html lang>, <meta http-equiv="content-language">, the Content-Language header, in this order), else the country of its domain.
"""

from __future__ import annotations

import importlib
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from mc2.curation.hints import country_hint, declared_hint
from mc2.curation.pair_keys import add_captions, first_of_each_key, url_id
from mc2.records import Pair

if TYPE_CHECKING:
    from mc2.curation.wat_page import Page

MAX_RECORD_BYTES = 64 << 20  # of one page's JSON; Common Crawl keeps 1 MiB of a page
_SCHEMES = ("http://", "https://")
_PLAIN_PATH = re.compile(r"/(?:[^\s/.?#;][^\s/?#;]*/)*[^\s/.?#;][^\s/?#;]*")  # most links: these `urljoin` only puts behind the origin
_GZIP_MAGIC = b"\x1f\x8b\x08"
_CHUNK_BYTES = 1 << 16


def read_wat(path: Path, drops: Counter[str]) -> Iterator[Pair]:
    """The pairs of a WAT file in its order. Errors: OSError if the file cannot be opened, ImportError that names what to install."""
    _packages()
    return first_of_each_key(_pairs(path, drops), drops)


@lru_cache(maxsize=1)
def _packages() -> tuple[Any, Callable[[bytes], Page], type[Exception]]:
    """(fastwarc.warc, decoder of a record's JSON, what it raises)."""
    try:
        warc, msgspec = importlib.import_module("fastwarc.warc"), importlib.import_module("msgspec")
    except ImportError as error:
        raise ImportError(f"WAT files are read with {error.name}, which is not installed; run `pip install 'mc2[wat]'`") from error
    from mc2.curation.wat_page import Page

    return warc, msgspec.json.Decoder(Page).decode, msgspec.DecodeError


def _pairs(path: Path, drops: Counter[str]) -> Iterator[Pair]:
    _, decode, decode_error = _packages()
    for data in _records(path, drops):
        try:
            page = decode(data)
        except (decode_error, RecursionError, UnicodeDecodeError):
            drops["broken_page"] += 1
        else:
            yield from page_pairs(page, drops)


# --- one page -----------------------------------------------------------------------------------------------------------


def page_pairs(page: Page, drops: Counter[str]) -> Iterator[Pair]:
    """The images of a page in the order of their first links."""
    links: dict[str, dict[str, None]] = {}  # URL as it stands -> captions
    for link in page.links:
        if link.path.startswith("IMG@/src"):
            texts = (text.replace("\n", " ").strip() for text in (link.alt, link.title, link.data_image_title))
            add_captions(links.setdefault(link.url, {}), filter(None, texts), drops)
    images: dict[str, tuple[str, dict[str, None]]] = {}  # key -> URL, captions
    base = _base(page)
    for link_url, captions in links.items():
        url = resolve(base, link_url) if captions else ""
        if url:
            add_captions(images.setdefault(url_id(url), (url, {}))[1], captions, drops)
        else:
            drops["no_url" if captions else "no_captions"] += 1
    hint = page_hint(page) if images else ""
    for key, (url, captions) in images.items():
        yield Pair(key, tuple(captions), None, url, hint)


def _base(page: Page) -> str:
    try:
        return urljoin(page.url, page.base.strip()) if page.base else page.url
    except ValueError:
        return page.url


def resolve(base: str, url: str) -> str:
    """The absolute URL of a link, "" if it has none that can be fetched."""
    url = url.strip()
    if not url.lower().startswith(_SCHEMES):
        try:
            url = _origin(base) + url if _PLAIN_PATH.fullmatch(url) else urljoin(base, url) if url else ""
        except ValueError:  # "Invalid IPv6 URL"
            return ""
    return url if url.lower().startswith(_SCHEMES) else ""


@lru_cache(maxsize=1024)
def _origin(base: str) -> str:
    parts = urlsplit(base)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""


def page_hint(page: Page) -> str:
    """BCP 47 tag of the language that the page declares, else of the country of its domain."""
    declared = (hint for text in page.declared_languages() if (hint := declared_hint(text)))
    try:
        return next(declared, "") or country_hint(urlsplit(page.url).hostname or "")
    except ValueError:
        return ""


# --- the records of a file ----------------------------------------------------------------------------------------------


def _records(path: Path, drops: Counter[str]) -> Iterator[bytes]:
    """The JSON of every record. A place that cannot be read is counted once, and reading goes on at the next gzip member that is whole."""
    start: int | None = 0
    num_records = num_places = 0
    while start is not None:
        last: int | None = None  # where the last good record of this round begins
        try:
            for offset, data in _records_from(path, start, drops):
                last, num_records = offset, num_records + 1
                yield data
            damaged = not _ends_whole(path, start if last is None else last)
        except (OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's own
                raise
            damaged = True
        num_places += damaged and (last is not None or start == 0)  # else it is the same place again
        start = _next_member(path, (start if last is None else last) + 1) if damaged else None
    if not num_records:
        drops["unreadable_wat"] += 1
    elif num_places:
        drops["damaged_wat"] += num_places


def _records_from(path: Path, start: int, drops: Counter[str]) -> Iterator[tuple[int, bytes]]:
    """(offset, JSON) of the records after an offset. Errors: OSError without a number or EOFError at a damaged place."""
    warc = _packages()[0]
    with open(path, "rb") as file:
        file.seek(start)
        for record in warc.ArchiveIterator(file, record_types=warc.WarcRecordType.metadata, parse_http=False):
            if record.content_length > MAX_RECORD_BYTES:
                drops["broken_page"] += 1
                continue
            data = record.reader.read()
            if len(data) < record.content_length or "Content-Length" not in record.headers:  # fastwarc does not mind a cut
                raise EOFError
            yield record.stream_pos, data


def _ends_whole(path: Path, start: int) -> bool:
    """True if gzip members reach from here to the very end: fastwarc takes a file that is cut off for one that ends."""
    with open(path, "rb") as file:
        file.seek(start)
        while start < path.stat().st_size:
            if (end := _member_end(file, start)) is None:
                return False
            start = end
    return True


def _next_member(path: Path, start: int) -> int | None:
    """Where the next gzip member begins that is whole and holds a WARC record."""
    with open(path, "rb") as file:
        while (found := _find(file, _GZIP_MAGIC, start)) is not None:
            if _member_end(file, found, b"WARC/") is not None:
                return found
            start = found + 1
    return None


def _member_end(file: IO[bytes], start: int, begins: bytes = b"") -> int | None:
    """Where the gzip member that begins at `start` ends; None if it is damaged, cut off, or does not hold what it should begin with."""
    file.seek(start)
    member = zlib.decompressobj(wbits=31)
    head = b""
    try:
        while not member.eof and (chunk := file.read(_CHUNK_BYTES)):
            data = member.decompress(chunk)
            head += data[: len(begins) - len(head)]
            if not begins.startswith(head[: len(begins)]):
                return None
    except zlib.error:
        return None
    return file.tell() - len(member.unused_data) if member.eof and head == begins else None


def _find(file: IO[bytes], what: bytes, start: int) -> int | None:
    """Offset of the first occurrence at or after `start`."""
    file.seek(start)
    window = file.read(_CHUNK_BYTES)
    while len(window) >= len(what):
        if (place := window.find(what)) >= 0:
            return start + place
        keep = len(what) - 1
        start += len(window) - keep
        window = window[-keep:] + file.read(_CHUNK_BYTES)
        if len(window) == keep:
            return None
    return None
