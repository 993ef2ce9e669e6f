"""Titles and their views from one page view file of Wikimedia, a batch at a time, in columns from end to end.

pageviews-20240501-130000.gz   one hour, since 2015-05: "domain title views size" ("en Fox 12 0"; "en.m" and "en.zero" are the mobile sites)
pageviews-20240501-user.bz2    one day ("pageview complete"), views of people: "domain title page_id access views hours" ("en.wikipedia Fox 53 desktop 12 A5B7")
pageviews-202405-user.bz2      one month, the same columns

Fields stand between single spaces; quotes mean nothing. Lines end at "\\n", "\\r\\n" or "\\r"; empty ones are skipped. What is left out has a name in DROPS.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from mc2 import languages, storage
from mc2.metadata.entries import MAX_ENTRY_CHARACTERS

# Why a line is left out; a line counts under the first reason that holds.
DROPS = {
    "broken_line": "the line has more or fewer fields than its file",
    "other_project": "the domain is no Wikipedia",
    "broken_views": "the views are not a number below 10**15",
    "not_utf8": "the title is not UTF-8, also when percent codes are resolved",
    "no_title": 'the title is empty or "-", which stands for an unknown page',
    "namespace": 'the title contains ":", as pages of other name spaces do (and a few articles)',
    "long_title": f"the title has more than {MAX_ENTRY_CHARACTERS} characters",
}

VIEWS_SCHEMA = pa.schema(
    [
        pa.field("language", pa.string(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("views", pa.int64(), nullable=False),
    ]
)

HOURLY = re.compile(r"pageviews-\d{8}-\d{6}\.gz")
COMPLETE = re.compile(r"pageviews-\d{6}(\d\d)?-user\.bz2")
_FIELDS = {
    HOURLY: ("domain", "title", "views", "size"),
    COMPLETE: ("domain", "title", "page_id", "access", "views", "hours"),
}
_BLOCK_BYTES = 4 << 20
_MAX_LINE_BYTES = 1 << 24


def layout(path: Path) -> re.Pattern[str]:
    """HOURLY or COMPLETE. Errors: ValueError for a file whose name is neither."""
    for pattern in _FIELDS:
        if pattern.fullmatch(path.name):
            return pattern
    raise ValueError(
        f"{path}: is no page view file; need names as pageviews-20240501-130000.gz (an hour) or pageviews-20240501-user.bz2 (a day)"
    )


def hourly_files(number: int = 40, first: date = date(2018, 1, 1), last: date = date(2024, 4, 30), seed: int = 0) -> list[str]:
    """Names of the hourly files of randomly drawn days, as "2024/2024-05/pageviews-20240501-130000.gz" below dumps.wikimedia.org/other/pageviews.

    Published: 40 days of 2018 to 2024, 24 files each. The days are the first of all in an order drawn by the seed, so that more days keep the fewer.
    """
    days = [first + timedelta(days=day) for day in range((last - first).days + 1)]
    if not 0 < number <= len(days):
        raise ValueError(f"page views: found {number} days to draw from {first} to {last}, need 1 to {len(days)}")
    drawn = sorted(storage.keyed_order(seed, "page views", 0, [day.strftime("%Y%m%d") for day in days])[:number])
    return [f"{day[:4]}/{day[:4]}-{day[4:6]}/pageviews-{day}-{hour:02}0000.gz" for day in drawn for hour in range(24)]


def read_views(path: Path, known: Collection[str], counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    """Batches of VIEWS_SCHEMA of the pages of Wikipedias, titles with spaces for "_" and resolved percent codes. A title may come several times.

    `counts` gets "lines" and every reason in DROPS. Errors: ValueError that names a file that is damaged or has no page views.
    """
    fields, num_titles, language_of = _FIELDS[layout(path)], 0, _LanguageOf(known)
    try:
        with pa.OSFile(str(path)) as file, pa.CompressedInputStream(file, "bz2" if path.suffix == ".bz2" else "gzip") as stream:
            for block in _blocks(stream):
                if batch := _titles(_lines(block, fields, counts), language_of, counts):
                    num_titles += len(batch)
                    yield batch
    except OSError as error:  # Arrow tells a damaged archive from a read error by the text alone
        raise ValueError(f"{path}: is damaged or cannot be read ({error}); fetch it again") from error
    if not num_titles:
        raise ValueError(f"{path}: has no page views of a Wikipedia; fetch it again or leave it out")


class _LanguageOf(dict[bytes, str | None]):
    """Domain of a page view file -> metadata language, None for what is no Wikipedia."""

    def __init__(self, known: Collection[str]) -> None:
        super().__init__()
        self.known = known

    def __missing__(self, domain: bytes) -> str | None:
        code = re.sub(r"(\.m|\.zero)?(\.wikipedia)?$", "", domain.decode(errors="replace"))
        self[domain] = languages.wikipedia_language(code, self.known)
        return self[domain]


def _blocks(stream: Any) -> Iterator[bytes]:
    """The bytes of a stream, cut at line ends."""
    rest = b""
    while piece := stream.read(_BLOCK_BYTES):
        lines, end, rest = (rest + piece).rpartition(b"\n")
        if end:
            yield lines
        elif len(rest) > _MAX_LINE_BYTES:
            raise OSError(f"a line is longer than {_MAX_LINE_BYTES:,} bytes")
    yield rest


def _lines(block: bytes, fields: tuple[str, ...], counts: Counter[str]) -> pa.RecordBatch:
    """Domain, title and views of the lines, as bytes."""
    try:
        batch = _parsed(block, fields)
    except pa.ArrowInvalid:  # some line is broken; Arrow's own handler of broken lines cannot stand those that are not UTF-8
        lines = [line for line in re.split(rb"[\r\n]+", block) if line]
        whole = [line for line in lines if line.count(b" ") == len(fields) - 1]
        counts["lines"] += len(lines) - len(whole)
        counts["broken_line"] += len(lines) - len(whole)
        batch = _parsed(b"\n".join(whole) or b" " * (len(fields) - 1), fields).slice(0, len(whole))
    counts["lines"] += len(batch)
    return batch


def _parsed(block: bytes, fields: tuple[str, ...]) -> pa.RecordBatch:
    table = pa_csv.read_csv(
        pa.BufferReader(b"\n" + block),  # an empty line before the first keeps Arrow from taking a byte order mark out of it
        pa_csv.ReadOptions(column_names=fields, block_size=len(block) + 2, use_threads=False),
        pa_csv.ParseOptions(delimiter=" ", quote_char=False, double_quote=False, escape_char=False),
        pa_csv.ConvertOptions(
            check_utf8=False,
            column_types=dict.fromkeys(fields, pa.binary()),
            include_columns=["domain", "title", "views"],
            strings_can_be_null=False,
        ),
    )
    return pa.record_batch([column.combine_chunks() for column in table.columns], names=table.column_names)


def _titles(batch: pa.RecordBatch, language_of: _LanguageOf, counts: Counter[str]) -> pa.RecordBatch:
    domain = batch["domain"].dictionary_encode()
    language = pa.array([language_of[code] for code in domain.dictionary.to_pylist()], pa.string()).take(domain.indices)
    batch = pa.record_batch({"language": language, "title": batch["title"], "views": batch["views"]})
    batch = _keep(batch, pc.is_valid(language), "other_project", counts)
    batch = _keep(batch, pc.match_substring_regex(batch["views"], r"^[0-9]{1,15}$"), "broken_views", counts)
    titles, is_utf8 = _decoded(batch["title"])
    titles = pc.ascii_trim(pc.replace_substring(titles, "_", " "), " ")
    views = batch["views"].cast(pa.string()).cast(pa.int64())
    batch = _keep(pa.record_batch([batch["language"], titles, views], schema=VIEWS_SCHEMA), is_utf8, "not_utf8", counts)
    batch = _keep(batch, pc.invert(pc.is_in(batch["title"], pa.array(["", "-"]))), "no_title", counts)
    batch = _keep(batch, pc.invert(pc.match_substring(batch["title"], ":")), "namespace", counts)
    return _keep(batch, pc.less_equal(pc.utf8_length(batch["title"]), MAX_ENTRY_CHARACTERS), "long_title", counts)


def _keep(batch: pa.RecordBatch, keep: pa.BooleanArray, reason: str, counts: Counter[str]) -> pa.RecordBatch:
    kept = batch.filter(keep) if keep.false_count else batch
    counts[reason] += len(batch) - len(kept)
    return kept


def _decoded(titles: pa.BinaryArray) -> tuple[pa.StringArray, pa.BooleanArray]:
    """The titles with percent codes resolved, "" for those that are not UTF-8; and which of them are.

    MediaWiki allows no "%" before two hexadecimal digits in a title, so there is nothing that should stay as it is.
    """
    coded = pc.match_substring(titles, "%")
    if coded.true_count:
        plain = pa.array([unquote_to_bytes(title) for title in titles.filter(coded).to_pylist()], pa.binary())
        titles = pc.replace_with_mask(titles, coded, plain)
    try:
        return titles.cast(pa.string()), pa.repeat(pa.scalar(True), len(titles))
    except pa.ArrowInvalid:  # rare, so one title after the other is quick enough
        is_utf8 = pa.array([_is_utf8(title) for title in titles.to_pylist()])
        return pc.if_else(is_utf8, titles, pa.scalar(b"")).cast(pa.string()), is_utf8


def _is_utf8(title: bytes) -> bool:
    try:
        title.decode()
    except UnicodeDecodeError:
        return False
    return True
