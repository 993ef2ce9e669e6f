"""Pairs of a parquet file: rows of a URL or key, captions, perhaps the image and the language of the page.

captions   a string, or a list of strings; bytes that are not UTF-8 come as surrogate escapes
key        if the file has none: `url_id` of the URL
image      the bytes of the encoded image, or {bytes, path} as Hugging Face's `datasets` writes them. A row without them gives a pair without an image, which
           packing drops (broken_image): to know it earlier, all images would have to be read to match captions

Neighbouring rows with the same key are one pair with the captions of all (each text once); later rows with a key that came before are dropped
(duplicate_key). A file is read a few rows at a time, whatever the size of its row groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator
from itertools import chain, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt

from mc2.curation.hints import declared_hint
from mc2.curation.pair_keys import add_captions, file_key, first_of_each_key, is_utf8, url_id
from mc2.curation.pool_columns import PoolColumns, find_columns
from mc2.records import Pair

BATCH_ROWS = 1024
BATCH_BYTES = 16 << 20  # on average
_BUFFER_BYTES = 1 << 20
_DAMAGE = (OSError, pa.ArrowException, ValueError, OverflowError, IndexError)  # what Arrow raises on broken bytes


def read_parquet(path: Path, drops: Counter[str], images: bool | Container[str], columns: PoolColumns) -> Iterator[Pair]:
    """The pairs of a parquet file, see `pool.read_pairs`. Errors: OSError if the file cannot be opened, ValueError for columns that it has not."""
    opened = _open(path)
    if opened is None:
        drops["unreadable_parquet"] += 1
        return
    file, schema = opened
    with file:
        found = find_columns(schema, columns, path.name)
        rows = (row for group in range(file.num_row_groups) for row in _group_rows(file, group, found, images, drops))
        yield from first_of_each_key(_joined(rows, drops), drops)


def parquet_has_images(path: Path, columns: PoolColumns) -> bool | None:
    """Whether a file has a column of images; None for one that does not say: it cannot be read, or the column holds nothing but nulls."""
    opened = _open(path)
    if opened is None:
        return None
    file, schema = opened
    with file:
        image = find_columns(schema, columns, path.name).image
        return None if image is not None and pt.is_null(schema.field(image).type) else image is not None


def _open(path: Path) -> tuple[pq.ParquetFile, pa.Schema] | None:
    """None for a file that is no parquet or has lost its footer, where everything about it stands."""
    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True)
        schema = file.schema_arrow
        _leaves(file), str(schema)  # names that are not UTF-8 show now
        return file, schema
    except _DAMAGE as error:
        _raise_if_of_the_disk(error)
        return None


def _raise_if_of_the_disk(error: Exception) -> None:
    """Arrow's own OSError has no number; one that has comes from the file system."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


# --- rows ---------------------------------------------------------------------------------------------------------------


def _joined(rows: Iterator[Pair], drops: Counter[str]) -> Iterator[Pair]:
    """Neighbouring rows of one key as one pair: URL, hint and image of the first, captions of all."""
    first: Pair | None = None
    captions: dict[str, None] = {}
    for row in chain(rows, [None]):
        if row is None or first is None or row.key != first.key:
            if captions and first is not None:
                joined = tuple(captions)
                yield first if joined == first.captions else Pair(first.key, joined, first.image, first.url, first.hint)
            elif first is not None:
                drops["no_captions"] += 1
            first, captions = row, {}
        if row is not None:
            add_captions(captions, row.captions, drops)


def _group_rows(file: pq.ParquetFile, group: int, found: PoolColumns, images: bool | Container[str], drops: Counter[str]) -> Iterator[Pair]:
    """The rows of a row group, up to where it is damaged.

    If only its images are damaged, the rest of the rows come with none: whoever reads the captions alone must find the same pairs.
    """
    text = [name for name in (found.url, found.key, found.caption, found.hint) if name]
    image = [path for path in _leaves(file) if found.image and path in (found.image, f"{found.image}.bytes")]
    done = 0
    for columns in ([*text, *image], text) if image and images is not False else (text,):
        skip = done
        try:
            for batch in file.iter_batches(_batch_rows(file, group), [group], columns, use_threads=False):
                rows = batch.slice(skip)
                skip -= len(batch) - len(rows)
                if len(rows):
                    pairs = _batch_pairs(rows, found, images, drops)
                    done += len(rows)
                    yield from pairs
            if (
                done >= file.metadata.row_group(group).num_rows
            ):  # Arrow ends early, without an error, where a column has fewer values than there are rows
                return
        except _DAMAGE as error:
            _raise_if_of_the_disk(error)
    drops["damaged_row_group"] += 1


def _batch_pairs(rows: pa.RecordBatch, found: PoolColumns, images: bool | Container[str], drops: Counter[str]) -> list[Pair]:
    """A pair for each row that has a key, and an image if the image column was read."""
    urls, keys, hints = (_texts(rows, name) for name in (found.url, found.key, found.hint))
    captions = _captions(rows.column(found.caption))
    image = _images(rows, found.image)
    pairs = []
    for i in range(len(rows)):
        url = (urls[i] or "").strip()
        url = url if is_utf8(url) else ""
        key = _key(keys[i]) if found.key else (url_id(url) if url else None)
        if key is None:
            drops["broken_record" if found.key else "no_url"] += 1
        else:
            wanted = images if isinstance(images, bool) else key in images
            data = image[i].as_py() or None if image is not None and wanted else None
            pairs.append(Pair(key, captions[i], data, url, declared_hint(hints[i] or "")))
    return pairs


def _key(text: str | None) -> str | None:
    return file_key(text) if text and is_utf8(text) else None


# --- columns of a batch -------------------------------------------------------------------------------------------------


def _texts(rows: pa.RecordBatch, name: str | None) -> list[str | None]:
    """A column of strings, bytes or integers as strings; None for every row if there is no such column."""
    return _strings(rows.column(name)) if name else [None] * len(rows)


def _strings(array: pa.Array) -> list[str | None]:
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pt.is_null(array.type):
        return [None] * len(array)
    if pt.is_integer(array.type):
        return [None if value is None else str(value) for value in array.to_pylist()]
    if pt.is_string(array.type) or pt.is_large_string(array.type) or pt.is_string_view(array.type):
        try:
            return list(array.to_pylist())
        except UnicodeDecodeError:
            array = array.cast(pa.large_binary())
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in array.to_pylist()]


def _captions(array: pa.Array) -> list[tuple[str, ...]]:
    """The captions of every row: none for a null, an empty one for a null in a list."""
    if pt.is_list(array.type) or pt.is_large_list(array.type):
        values = iter(_strings(array.flatten()))
        lengths = pc.list_value_length(array).fill_null(0).to_pylist()
        return [tuple(value or "" for value in islice(values, length)) for length in lengths]
    return [() if value is None else (value,) for value in _strings(array)]


def _images(rows: pa.RecordBatch, name: str | None) -> pa.Array | None:
    """The bytes of the images, null where there are none; None if the column was not read."""
    if not name or name not in rows.schema.names:
        return None
    array = rows.column(name)
    return pc.struct_field(array, "bytes") if pt.is_struct(array.type) else array


# --- row groups ---------------------------------------------------------------------------------------------------------


def _leaves(file: pq.ParquetFile) -> list[str]:
    """The columns as they lie in the file: "url", "captions.list.element", "image.bytes"."""
    return [file.schema.column(i).path for i in range(len(file.schema))]


def _batch_rows(file: pq.ParquetFile, group: int) -> int:
    """Rows to read at a time, so that all their columns take about BATCH_BYTES."""
    row_group = file.metadata.row_group(group)  # but none of its columns: Arrow aborts the process over those of a damaged footer
    return int(max(1, min(BATCH_ROWS, BATCH_BYTES * max(1, row_group.num_rows) // max(1, row_group.total_byte_size))))
