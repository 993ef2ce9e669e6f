"""What is wrong with a folder of training shards: one line for each problem, with the file and the cure. Nothing is written.

A folder of `mc2 curate pack` is held against its manifest and its indices. Of anybody's img2dataset tars without a manifest only what is in the tars can be
checked. Keys must be unique within a shard; over the whole folder they need not be (see `mc2.curation.pack_stage`).
"""

from __future__ import annotations

import fcntl
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mc2 import storage
from mc2.curation.filters import PREFIX
from mc2.curation.verify_shard import AGAIN, CheckShard, Problem, ShardCheck
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine
from mc2.records import DROP_REASONS, ShardInfo, ShardManifest

MANIFEST = "manifest.json"


def verify_shards(folder: str | Path, images: bool = False, engine: Engine | None = None) -> tuple[list[Problem], str]:
    """The problems of a folder, in the order of its files, and one line that says how much was checked.

    Errors: ValueError for a folder without shards, or one in which a job is writing.
    """
    folder, engine = Path(folder), engine or LocalEngine()
    if not folder.is_dir():
        raise ValueError(f"{folder}: no folder of shards here; give one with .tar files (`mc2 curate pack` writes them)")
    _refuse_locked(folder)
    tars = sorted(folder.glob("*.tar"))
    packed = any((folder / name).exists() for name in (MANIFEST, "inputs.json")) or any(folder.glob("*.index.parquet"))
    if not tars and not packed:
        raise ValueError(f"{folder}: found no .tar file, need at least one shard")
    manifest, problems = _read_manifest(folder) if packed else (None, [])
    problems += [Problem(path.name, "left over from a job that was killed", "delete it") for path in sorted(folder.glob(".*.tmp"))]
    checks = engine.map("verify", CheckShard(packed, images), tars)
    problems += [problem for check in checks for problem in check.problems]
    problems += _twins([check.info for check in checks])
    if manifest is not None:
        problems += _against_manifest(folder, manifest, checks)
    problems.sort(key=lambda problem: problem.file)
    return problems, _summary(folder, [check.info for check in checks], packed, images)


def _refuse_locked(folder: Path) -> None:
    if (folder / ".lock").exists():
        with open(folder / ".lock", "rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"{folder}: a job is writing here; wait for it, then verify") from error


def _read_manifest(folder: Path) -> tuple[ShardManifest | None, list[Problem]]:
    """The manifest, if it is one, and what is wrong with it or with the mark of the stage."""
    cure = f"copy it again, or delete done.json and {AGAIN}"
    if (folder / "inputs.json").exists() and not (folder / "done.json").exists():
        return None, [Problem("done.json", "is missing: packing has not finished", AGAIN)]
    try:
        manifest = ShardManifest.from_json(storage.read_json(folder / MANIFEST))
        twice = sorted(name for name, number in Counter(shard.name for shard in manifest.shards).items() if number > 1)
        drops = sorted(
            reason for reason, number in manifest.drops.items() if not (reason in DROP_REASONS or reason.startswith(PREFIX)) or number < 0
        )
        total = _pairs_by_mark(folder, manifest)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = "is missing" if not (folder / MANIFEST).exists() else f"cannot be read as a manifest ({type(error).__name__})"
        return None, [Problem(MANIFEST, found, cure)]
    problems = []
    if twice:
        problems.append(Problem(MANIFEST, f"names shards twice: {', '.join(twice)}", cure))
    if total != manifest.num_pairs:
        problems.append(Problem(MANIFEST, f"adds up to {manifest.num_pairs:,} pairs, done.json says {total:,}", cure))
    if drops:
        problems.append(Problem(MANIFEST, f"has drops that cannot be: {', '.join(drops)}", cure))
    return manifest, problems


def _pairs_by_mark(folder: Path, manifest: ShardManifest) -> int:
    """The pairs that the mark of the finished stage tells of; those of the manifest for a folder that was copied without it."""
    mark = folder / "done.json"
    return int(storage.read_json(mark)["results"]["pairs"]) if mark.exists() else manifest.num_pairs


def _twins(infos: Sequence[ShardInfo]) -> list[Problem]:
    """Shards with the same bytes."""
    first: dict[str, str] = {}
    for info in infos:
        first.setdefault(info.sha256, info.name)
    return [
        Problem(f"{info.name}.tar", f"is the same file as {first[info.sha256]}.tar", "take one of them away")
        for info in infos
        if info.sha256 and first[info.sha256] != info.name
    ]


def _against_manifest(folder: Path, manifest: ShardManifest, checks: Sequence[ShardCheck]) -> Iterator[Problem]:
    """Shards, and what is in them, that are not as the manifest says; and indices that are not as their shards."""
    found = {check.info.name: check for check in checks}
    for need in manifest.shards:
        tar, again = f"{need.name}.tar", f"copy it again, or delete {need.name}.index.parquet and done.json and {AGAIN}"
        if need.name not in found:
            yield Problem(tar, "is missing", again)
            continue
        check = found[need.name]
        if wrong := _differences(check.info, need):
            yield Problem(tar, f"is not as {MANIFEST} says: {wrong}", again)
        if check.index is not None and (wrong := _differences(check.index, need)):
            yield Problem(
                f"{need.name}.index.parquet",
                f"is not as {MANIFEST} says: {wrong}",
                f"copy it again, or delete it and done.json and {AGAIN}",
            )
    names = {shard.name for shard in manifest.shards}
    indices = {path.name.removesuffix(".index.parquet") for path in folder.glob("*.index.parquet")}
    strange = [f"{name}.tar" for name in found if name not in names]
    strange += [f"{name}.index.parquet" for name in sorted(indices - names) if not _is_empty(folder / f"{name}.index.parquet")]
    yield from (Problem(name, f"is not in {MANIFEST}", "take it away: it belongs to another data set") for name in strange)


def _is_empty(index: Path) -> bool:
    """Whether it is the index of a shard of which packing dropped everything."""
    try:
        return bool(pq.read_metadata(index).num_rows == 0)
    except (OSError, pa.ArrowException):
        return False


def _differences(found: ShardInfo, need: ShardInfo) -> str:
    """What differs, with both values; "" if nothing does."""
    fields = {
        "bytes": "num_bytes",
        "pairs": "num_pairs",
        "captions by language": "captions",
        "pairs by language": "pairs",
        "SHA-256": "sha256",
    }
    values = {name: (getattr(found, attribute), getattr(need, attribute)) for name, attribute in fields.items()}
    return ", ".join(f"{name}: found {a}, need {b}" for name, (a, b) in values.items() if a != b)


def _summary(folder: Path, infos: Sequence[ShardInfo], packed: bool, images: bool) -> str:
    captions = sum((Counter(info.captions) for info in infos), Counter[str]())
    num_languages = len(captions.keys() - {""})
    num_bytes, num_pairs = sum(info.num_bytes for info in infos), sum(info.num_pairs for info in infos)
    in_languages = f" in {num_languages} languages" if num_languages else ""
    how = ", ".join(words for words, said in (("no manifest", not packed), ("images not decoded", not images)) if said)
    return f"{folder}: {len(infos):,} shards, {num_pairs:,} pairs, {captions.total():,} captions{in_languages}, {num_bytes / 1e9:,.2f} GB{f' ({how})' if how else ''}"
