"""A fastText classifier as arrays, read from the file that the library writes (`.bin`, quantised `.ftz`): lid.176, OpenLID, GlotLID.

The file, little-endian, version 12: magic and version; 12 int32 of arguments and one double; the dictionary (words, then labels, each zero-terminated with
count and type; the pairs (bucket, row) that pruning kept); the input matrix (word rows, then bucket rows), dense or as product quantiser; the output matrix.
Source: https://github.com/facebookresearch/fastText, src/{fasttext,args,dictionary,densematrix,quantmatrix,productquantizer,loss}.cc.

V words, B buckets, D dimensions, L labels, R rows of the input matrix, O rows of the output: L - 1 inner nodes of the Huffman tree, or L for softmax.
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

LABEL_PREFIX = "__label__"
_MAGIC, _VERSION, _SUPERVISED = 793712314, 12, 3
_ARGUMENTS = ("dim", "ws", "epoch", "min_count", "neg", "word_ngrams", "loss", "model", "bucket", "minn", "maxn", "lr_update_rate")
_HIERARCHICAL, _SOFTMAX = 1, 3
_CENTROIDS = 256  # of one part of a product quantiser


class Features(NamedTuple):
    """What turns a caption into rows of the input matrix. The words are found by their hash in an open-addressing table."""

    slots: NDArray[np.uint64]  # 2^k: hash << 32 | number + 1 of the word or label, 0 for a free slot
    word_bytes: NDArray[np.uint8]  # the file's bytes of the dictionary; a zero ends a word
    word_starts: NDArray[np.int64]
    num_words: int
    end_of_line: int  # number of the word "</s>", -1 if there is none
    bucket: int
    minn: int
    maxn: int
    word_ngrams: int
    kept: NDArray[np.uint64]  # B bits: the bucket has a row
    kept_before: NDArray[np.int32]  # number of such buckets before each 64


class Tree(NamedTuple):
    """The Huffman tree of the hierarchical softmax: node i >= L has the children left[i - L] and right[i - L]; the root is the last."""

    left: NDArray[np.int32]
    right: NDArray[np.int32]


@dataclass(frozen=True)
class FastTextModel:
    """labels: without the prefix, as the file orders them (most frequent first). tree: None for softmax."""

    labels: tuple[str, ...]
    features: Features
    input_RD: NDArray[np.float32]
    output_DO: NDArray[np.float32]
    tree: Tree | None

    @classmethod
    def open(cls, path: Path) -> FastTextModel:
        """The model of a file; a dense input matrix stays on the disk (memory-mapped). Read once per process. Errors: ValueError that names the file."""
        if not path.is_file():
            raise ValueError(f"{path}: the language-identification model is not there; give the path of a fastText .bin or .ftz file")
        stat = path.stat()
        return _open(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2)
def _open(path: Path, size: int, _mtime: int) -> FastTextModel:
    data = np.asarray(np.memmap(path, np.uint8, "r")) if size else np.zeros(0, np.uint8)
    try:
        return _parse(_Reader(data))
    except struct.error as error:
        raise ValueError(f"{path}: is cut off or damaged ({error}); copy the model again") from error
    except _FormatError as error:
        raise ValueError(f"{path}: {error}") from error


class _FormatError(Exception):
    """What the file has and what is needed."""


class _Reader:
    """Reads the bytes of a file from front to back. Errors: struct.error behind the end."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.data, self.at = data, 0

    def numbers(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: type[np.generic], count: int) -> NDArray[Any]:
        end = self.at + count * np.dtype(dtype).itemsize
        if count < 0 or end > len(self.data):
            raise struct.error(f"need {count:,} numbers from byte {self.at:,} of {len(self.data):,}")
        values: NDArray[Any] = self.data[self.at : end].view(dtype)
        self.at = end
        return values


def _parse(read: _Reader) -> FastTextModel:
    from mc2.curation.fasttext_kernel import build_slots, scan_dictionary

    arguments = _arguments(read)
    size, num_words, num_labels, _, num_pruned = read.numbers("iiiqq")
    starts, ends, counts, read.at = scan_dictionary(read.data, read.at, size)
    if read.at < 0 or size != num_words + num_labels:
        raise struct.error(f"the dictionary of {num_words:,} words and {num_labels:,} labels does not end")
    words = (read.data[start:end].tobytes() for start, end in zip(starts, ends, strict=True))
    end_of_line = next((i for i, word in enumerate(itertools.islice(words, num_words)) if word == b"</s>"), -1)
    labels = [read.data[s:e].tobytes().decode(errors="replace") for s, e in zip(starts[num_words:], ends[num_words:], strict=True)]
    pruned = read.array(np.int32, 2 * max(num_pruned, 0)).reshape(-1, 2)
    input_RD, output_OD = _matrices(read)
    num_rows = num_words + (arguments["bucket"] if num_pruned < 0 else len(pruned))
    if len(input_RD) < num_rows or len(output_OD) < num_labels or (pruned[:, 1] >= len(input_RD) - num_words).any():
        raise struct.error(f"matrices of {len(input_RD):,} and {len(output_OD):,} rows, need {num_rows:,} and {num_labels:,}")
    buckets = np.arange(arguments["bucket"], dtype=np.int32)
    if num_pruned >= 0:
        pruned = pruned[np.argsort(pruned[:, 0])]
        buckets = pruned[:, 0]
        input_RD = np.concatenate([input_RD[:num_words], input_RD[num_words + pruned[:, 1]]])
    input_RD.setflags(write=False)  # as a mapped one is: numba compiles once more for what can be written
    sizes = (num_words, end_of_line, arguments["bucket"], arguments["minn"], arguments["maxn"], arguments["word_ngrams"])
    tree = _huffman_tree(counts[num_words:]) if arguments["loss"] == _HIERARCHICAL else None
    return FastTextModel(
        tuple(label.removeprefix(LABEL_PREFIX) for label in labels),
        Features(build_slots(read.data, starts, ends), read.data, starts, *sizes, *_bits(buckets, arguments["bucket"])),
        input_RD,
        np.ascontiguousarray(output_OD[: num_labels - 1 if tree else num_labels].T),
        tree,
    )


def _arguments(read: _Reader) -> dict[str, int]:
    """What the file says of its model before the dictionary."""
    if len(read.data) < 8 or read.numbers("ii") != (_MAGIC, _VERSION):
        raise _FormatError(f"found no fastText model of version {_VERSION}; give a .bin or .ftz file that fastText 0.2 or newer wrote")
    arguments = dict(zip(_ARGUMENTS, read.numbers("12i"), strict=True))
    read.numbers("d")
    if arguments["model"] != _SUPERVISED or arguments["loss"] not in (_HIERARCHICAL, _SOFTMAX):
        raise _FormatError(
            f"found model {arguments['model']} with loss {arguments['loss']}, need a classifier (3) with hierarchical softmax (1) or softmax (3)"
        )
    return arguments


def _matrices(read: _Reader) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The input and the output; only a model with a quantised input has a quantised output."""
    is_quantised = read.numbers("?")[0]
    input_RD = _quantised_matrix(read) if is_quantised else _dense_matrix(read)
    return input_RD, _quantised_matrix(read) if read.numbers("?")[0] and is_quantised else _dense_matrix(read)


def _dense_matrix(read: _Reader) -> NDArray[np.float32]:
    rows, columns = read.numbers("qq")
    return read.array(np.float32, rows * columns).reshape(rows, columns)


def _quantised_matrix(read: _Reader) -> NDArray[np.float32]:
    """A product-quantised matrix made dense: each row in parts, each part one of 256 centroids; with norms, a row is multiplied by one of 256 numbers."""
    has_norms, rows, columns, num_codes = read.numbers("?qqi")
    codes = read.array(np.uint8, num_codes).reshape(rows, -1)
    parts = _centroids(read, columns)
    dense = np.concatenate([centroids[codes[:, part]] for part, centroids in enumerate(parts)], axis=1)
    if has_norms:
        norm_codes = read.array(np.uint8, rows)
        dense *= _centroids(read, 1)[0][norm_codes]
    return dense


def _centroids(read: _Reader, columns: int) -> list[NDArray[np.float32]]:
    """Of each part of a row (256 x width of the part); the last part may be narrower."""
    dim, num_parts, width, last_width = read.numbers("4i")
    if dim != columns or (num_parts - 1) * width + last_width != columns:
        raise struct.error(f"a quantiser of {dim} columns for {columns}")
    return [read.array(np.float32, _CENTROIDS * w).reshape(_CENTROIDS, w) for w in [width] * (num_parts - 1) + [last_width]]


def _bits(buckets: NDArray[np.int32], count: int) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """A bit for each of `count` buckets, set for those in the list, and the number of set bits before each word of 64."""
    flags = np.zeros(-(-count // 64) * 64, np.uint8)
    flags[buckets] = 1
    before = np.cumsum(flags.reshape(-1, 64).sum(axis=1, dtype=np.int32), dtype=np.int32)
    return np.packbits(flags, bitorder="little").view(np.uint64), np.concatenate([np.zeros(1, np.int32), before[:-1]])


def _huffman_tree(counts: NDArray[np.int64]) -> Tree:
    """As fastText builds it from the labels' counts, which fall: the two rarest nodes join, a tie goes to the inner node."""
    num_labels = len(counts)
    count = [*counts.tolist(), *[10**15] * (num_labels - 1)]
    children = []
    leaf, node = num_labels - 1, num_labels
    for inner in range(num_labels, 2 * num_labels - 1):
        pair = []
        for _ in range(2):
            if leaf >= 0 and count[leaf] < count[node]:
                pair.append(leaf)
                leaf -= 1
            else:
                pair.append(node)
                node += 1
        count[inner] = count[pair[0]] + count[pair[1]]
        children.append(pair)
    both = np.array(children, np.int32).reshape(-1, 2)
    return Tree(np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1]))
