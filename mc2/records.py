"""The words of the flow: pair, matched caption, packed caption, shard manifest. Between stages travel these and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

# Reasons for which a caption or a pair leaves the flow. Every drop is counted under one of these names.
DROP_REASONS = {
    "empty_caption": "the caption has no characters besides white space",
    "not_utf8": "the caption is not UTF-8",
    "long_caption": "the caption is longer than the limit in characters",
    "unknown_language": "the language identification gave no language, or a score below the limit",
    "no_metadata": "the language has no metadata",
    "no_entry": "no metadata entry occurs in the caption",
    "no_captions": "the pair has no caption left",
    "no_image": "the pair has no image file",
    "broken_image": "the image cannot be decoded (JPEG, PNG or WebP)",
    "huge_image": "the image has more pixels than the limit",
    "broken_record": "the record's JSON or name cannot be read",
    "broken_page": "the record of a page in a WAT file cannot be read; none of its links was used",
    "duplicate_key": "an earlier pair of the same shard has this key",
    "unreadable_tar": "the file is not a tar; nothing of it was used",
    "truncated_tar": "the tar is cut off or damaged in the middle; the members before it were used",
    "damaged_record": "the tar does not have there what its index says; the records behind it are used",
    "stale_shard": "the training shard is not the one that the manifest knows; nothing of it was used",
    "unreadable_parquet": "the file is not a parquet, or its footer is damaged; nothing of it was used",
    "damaged_row_group": "a row group of the parquet is damaged; its rows up to there and the other row groups were used",
    "unreadable_wat": "the file holds no WARC record; nothing of it was used",
    "damaged_wat": "a place where the WAT file is damaged or cut off; the records that are whole were used",
    "no_url": "there is neither a key nor a URL, or none that can be fetched (http, https)",
    "many_captions": "the pair has more captions than the limit",
    "exact_duplicate": "an earlier image of the pool has the same bytes",
    "near_duplicate": "an earlier image of the pool that stays has nearly the same hash",
    "benchmark_overlap": "an image of a benchmark has the same bytes or nearly the same hash",
    "balanced_away": "no entry of any caption drew success (balancing, off-line or in the loader)",
    "language_share": "left out in this pass by the settings of the languages' shares (temperature, bounds)",
    "other_language": "no caption is in one of the languages chosen for training",
}


@dataclass(frozen=True, slots=True)
class Pair:
    """One image with its captions, as the pool has them.

    image: the encoded file, None for a pool of text only; `url` is where it can be had then.
    hint: BCP 47 tag of the language that the page declares ("de", "pt-BR"), or of its country alone ("und-CH"); "" where nothing is known.
    """

    key: str
    captions: tuple[str, ...]
    image: bytes | None = None
    url: str = ""
    hint: str = ""


# One row per caption of one pool shard: `match` writes it, `balance` sums over it, `pack` joins it with the images by key.
# `entries` are positions in the language's entry list; `drop` is null for a caption that stays.
MATCHED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("caption_index", pa.int32(), nullable=False),
        pa.field("language", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        pa.field("entries", pa.list_(pa.int32()), nullable=False),
        pa.field("drop", pa.string(), nullable=True),
    ]
)

# One row per image of one pool shard: `hash` writes it. `hash` has 64 bits (RECIPE 1.5); it and `format` (`images.image_format`) are null where the image cannot be
# decoded or no encoder was given.
HASHED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("hash", pa.uint64(), nullable=True),
        pa.field("format", pa.string(), nullable=True),
    ]
)

# One row per pair of one pool shard that `duplicates` drops. `duplicate_of`: "<shard>/<key>" of the image that stays, or that the benchmark has.
DUPLICATES_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("duplicate_of", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class PackedCaption:
    """A caption inside a training shard: `<key>.json` holds {"captions": [PackedCaption as dict, ...]}. Plain img2dataset tars have no language and entries."""

    text: str
    language: str = ""
    entries: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One training shard: tar and index (`<name>.index.parquet`: key, offset, size) beside each other.

    By language: `captions`, and `pairs` that show one of them where one caption of each pair is drawn (a caption counts 1 / captions of its pair).
    """

    name: str
    num_pairs: int
    num_bytes: int
    sha256: str
    captions: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShardManifest:
    """`manifest.json` of a folder of training shards.

    `drops` counts by reason: a name of DROP_REASONS, or "filter:<name>" for what a filter drops. `fingerprints` name the metadata and the balance that made it.
    `replaced`: number of images that filters replaced. `balanced`: "online" for shards that the loader balances, "offline" for those that are balanced already.
    """

    shards: tuple[ShardInfo, ...]
    drops: Mapping[str, int]
    fingerprints: Mapping[str, str]
    replaced: int = 0
    balanced: str = "online"

    @property
    def num_pairs(self) -> int:
        return sum(shard.num_pairs for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ShardManifest:
        return cls(**{**value, "shards": tuple(ShardInfo(**shard) for shard in value["shards"])})
