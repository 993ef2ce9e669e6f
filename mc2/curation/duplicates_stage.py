"""The stage `duplicates`: which pairs of a pool leave because their image is there already, or in a benchmark.

<shard>.parquet   `records.DUPLICATES_SCHEMA`: the pairs of a pool shard that leave
done.json         their number by reason, and the overlap by benchmark

One process sorts the hashes of all images: 120 bytes of memory for each, 12 GB for a pool of 100 million, and 100 bytes for each pair of close ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage
from mc2.curation.duplicates import REASONS, STAYS, BoolArray, ImageHashes, Verdicts, find_duplicates
from mc2.curation.hamming import check_radius
from mc2.curation.hash_stage import hashed_path
from mc2.curation.images import PACKED_FORMATS
from mc2.records import DUPLICATES_SCHEMA

# --- the hashes of a folder ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HashedShards:
    """The shards of a folder of `hash`, in the order of its images. `first`: of each shard the position of its first image, and last the number of all."""

    folder: Path
    names: Sequence[str]
    first: NDArray[np.int64]

    @classmethod
    def open(cls, folder: Path) -> HashedShards:
        """Errors: ValueError for a folder whose stage has not finished."""
        names = storage.finished(folder, "hash", "mc2 curate hash")["results"]["shards"]
        sizes = [pq.read_metadata(hashed_path(folder, name)).num_rows for name in names]
        return cls(folder, names, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))

    def __len__(self) -> int:
        return int(self.first[-1])

    def keys(self, shard: int) -> pa.ChunkedArray:
        return pq.read_table(hashed_path(self.folder, self.names[shard]), columns=["key"])["key"]

    def fill(self, content: NDArray[np.uint64], look: NDArray[np.uint64], has_look: BoolArray) -> None:
        """Put the hashes of all images into the arrays."""
        for name, start, stop in zip(self.names, self.first, self.first[1:], strict=False):
            table = pq.read_table(hashed_path(self.folder, name), columns=["sha256", "hash"]).combine_chunks()
            if stop > start:
                sha256 = table["sha256"].combine_chunks()
                content[start:stop] = np.frombuffer(sha256.buffers()[1], ">u8").reshape(-1, 4)[
                    sha256.offset : sha256.offset + stop - start, :2
                ]
                look[start:stop] = pc.fill_null(table["hash"], 0).to_numpy()
                has_look[start:stop] = pc.is_valid(table["hash"]).to_numpy()

    def labels(self, positions: NDArray[np.int64]) -> dict[int, str]:
        """Position -> "<shard>/<key>"; a shard is opened once."""
        found = dict[int, str]()
        positions = np.unique(positions)
        owner = np.searchsorted(self.first, positions, "right") - 1
        for shard in np.unique(owner):
            inside, stem = positions[owner == shard], hashed_path(self.folder, self.names[shard]).stem
            keys = self.keys(int(shard)).take(pa.array(inside - self.first[shard])).to_pylist()
            found.update(zip(inside.tolist(), (f"{stem}/{key}" for key in keys), strict=True))
        return found


def _all_hashes(folders: Sequence[HashedShards]) -> ImageHashes:
    total, start = sum(map(len, folders)), 0
    hashes = ImageHashes(np.zeros((total, 2), np.uint64), np.zeros(total, np.uint64), np.zeros(total, bool))
    for folder in folders:
        part = slice(start, start + len(folder))
        folder.fill(hashes.content[part], hashes.look[part], hashes.has_look[part])
        start += len(folder)
    return hashes


# --- the stage ----------------------------------------------------------------------------------------------------------


def run_duplicates(
    hashes: str | Path,
    out: str | Path,
    benchmarks: Sequence[str | Path] = (),
    radius: int = 3,
    matched: str | Path | None = None,
) -> dict[str, Any]:
    """Find exact and near duplicates of a pool, and its overlap with benchmarks. Returns {"images", "drops": by reason, "benchmark_overlap": by benchmark}.

    hashes: folder of `mc2 curate hash` of the pool; benchmarks: such folders of benchmarks, made with the same encoder and seed. matched: folder of
    `mc2 curate match`; then pairs without a matched caption take no part, as images of a format that is not packed never do: what stays can be packed.

    Errors: ValueError for folders that do not belong together, and for a radius that is out of range.
    """
    check_radius(radius)
    hashes, out, matched = Path(hashes), Path(out), Path(matched) if matched is not None else None
    pool, others = HashedShards.open(hashes), [HashedShards.open(Path(folder)) for folder in benchmarks]
    if empty := [other.folder for other in others if not len(other)]:
        raise ValueError(f"{empty[0]}: found no image of the benchmark; hash the folder that has its images, or leave it out")
    inputs = _inputs(hashes, [other.folder for other in others], radius, matched)
    with storage.Stage(out, "duplicates", inputs) as stage:
        if not stage.done:
            takes_part = _can_be_packed(pool)
            if matched is not None:
                takes_part &= _is_matched(pool, matched)
            verdicts = find_duplicates(_all_hashes([pool, *others]), sum(map(len, others)), inputs["radius"], takes_part)
            labels = _labels([pool, *others], verdicts)
            for shard in range(len(pool.names)):
                _write_shard(hashed_path(out, pool.names[shard]), pool, shard, verdicts, labels)
            stage.finish(_summary(pool, others, verdicts))
        return stage.results


def _inputs(hashes: Path, benchmarks: Sequence[Path], radius: int, matched: Path | None) -> storage.JSON:
    settings = storage.read_json(hashes / "inputs.json")
    for folder in benchmarks:
        found = storage.read_json(folder / "inputs.json")
        for name in ("encoder", "seed"):
            if found[name] != settings[name]:
                raise ValueError(
                    f"{folder}: was hashed with {name} {found[name]!r}, need {settings[name]!r} as in {hashes}; hash it again like that"
                )
    if matched is not None:
        storage.finished(matched, "match", "mc2 curate match")
        if storage.read_json(matched / "inputs.json")["pool"] != settings["pool"]:
            raise ValueError(f"{matched}: was matched from another pool than {hashes} was hashed from; run the one that is older again")
    fingerprints = {folder.name: storage.read_json(folder / "done.json")["fingerprint"] for folder in benchmarks}
    if len(fingerprints) < len(benchmarks):
        raise ValueError(f"duplicates: found benchmarks {[str(folder) for folder in benchmarks]}, need folders with different names")
    return {
        "pool": settings["pool"],
        "hashes": storage.read_json(hashes / "done.json")["fingerprint"],
        "benchmarks": fingerprints,
        "radius": radius if settings["encoder"] is not None else None,
        "matched": None if matched is None else storage.read_json(matched / "done.json")["fingerprint"],
    }


def _can_be_packed(pool: HashedShards) -> BoolArray:
    """(N,) False for images that pack drops for their format: a copy that it takes would leave for their sake."""
    files = [hashed_path(pool.folder, name) for name in pool.names]
    formats = [pq.read_table(file, columns=["format"])["format"] for file in files]
    packed = [pc.or_(pc.is_null(part), pc.is_in(part, pa.array(list(PACKED_FORMATS)))).to_numpy() for part in formats]
    return np.concatenate([np.zeros(0, bool), *packed])


def _is_matched(pool: HashedShards, matched: Path) -> BoolArray:
    """(N,) True for pairs with a matched caption."""
    parts = [np.zeros(0, bool)]
    for shard, name in enumerate(pool.names):
        table = pq.read_table(hashed_path(matched, name), columns=["key", "drop"])
        keys = table.filter(pc.is_null(table["drop"]))["key"]
        parts.append(pc.is_in(pool.keys(shard), pc.unique(keys)).to_numpy())
    return np.concatenate(parts)


def _labels(folders: Sequence[HashedShards], verdicts: Verdicts) -> dict[int, str]:
    """Position -> name of every image that another one doubles; those of a benchmark begin with its folder's name."""
    labels, start = dict[int, str](), 0
    originals = verdicts.duplicate_of[verdicts.reason != STAYS]
    for number, folder in enumerate(folders):
        inside = originals[(originals >= start) & (originals < start + len(folder))] - start
        prefix = f"{folder.folder.name}/" if number else ""
        labels |= {position + start: prefix + label for position, label in folder.labels(inside).items()}
        start += len(folder)
    return labels


def _write_shard(path: Path, pool: HashedShards, shard: int, verdicts: Verdicts, labels: dict[int, str]) -> None:
    part = slice(pool.first[shard], pool.first[shard + 1])
    rows = np.flatnonzero(verdicts.reason[part] != STAYS)
    reasons = pa.array([REASONS[reason] for reason in verdicts.reason[part][rows]], pa.string())
    originals = pa.array([labels[original] for original in verdicts.duplicate_of[part][rows].tolist()], pa.string())
    table = pa.table([pool.keys(shard).take(pa.array(rows)), reasons, originals], schema=DUPLICATES_SCHEMA)
    with storage.atomic_write(path) as file:
        pq.write_table(table, file, compression="zstd")


def _summary(pool: HashedShards, benchmarks: Sequence[HashedShards], verdicts: Verdicts) -> dict[str, Any]:
    """The number of images, and of those that leave by reason; of the overlap also by benchmark."""
    counts = {name: int((verdicts.reason == number).sum()) for number, name in enumerate(REASONS)}
    overlap = verdicts.duplicate_of[verdicts.reason == REASONS.index("benchmark_overlap")]
    ends = len(pool) + np.cumsum([0, *map(len, benchmarks)])
    numbers = np.histogram(overlap, ends)[0].tolist() if benchmarks else []
    by_benchmark = {folder.folder.name: number for folder, number in zip(benchmarks, numbers, strict=True)}
    return {"images": len(pool), "drops": counts, "benchmark_overlap": by_benchmark}


# --- for the stages that come after -------------------------------------------------------------------------------------


def check_duplicates(duplicates: Path | None, pool_fingerprint: str) -> str | None:
    """The fingerprint of a finished folder of duplicates. Errors: ValueError for one of another pool, or one that has not finished."""
    if duplicates is None:
        return None
    done = storage.finished(duplicates, "duplicates", "mc2 curate duplicates")
    if storage.read_json(duplicates / "inputs.json")["pool"] != pool_fingerprint:
        raise ValueError(
            f"{duplicates}: belongs to another pool (names or sizes differ); run `mc2 curate hash` and `mc2 curate duplicates` again"
        )
    return str(done["fingerprint"])


def without_duplicates(rows: pa.Table, duplicates: Path | None, shard: str) -> tuple[pa.Table, dict[str, int]]:
    """The rows of a pool shard (a table with "key") that do not leave as duplicates, and how many different keys leave, by reason."""
    if duplicates is None:
        return rows, {}
    leave = pq.read_table(hashed_path(duplicates, shard), columns=["key", "reason"])
    leave = leave.filter(pc.is_in(leave["key"], pc.unique(rows["key"])))
    counts = {row["values"]: row["counts"] for row in pc.value_counts(leave["reason"]).to_pylist()}
    return rows.filter(pc.invert(pc.is_in(rows["key"], leave["key"]))).combine_chunks(), dict(sorted(counts.items()))
