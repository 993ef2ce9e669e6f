"""The stage `pack`: pool + matched captions -> training shards of equal size, with everything decided that need not be decided again in the loader.

<shard>.tar             `<key>.jpg` (or png, webp) + `<key>.json` {"captions": [{"text", "language", "entries"}]}, in the order of the pool
<shard>.index.parquet   key, offset, size: the bytes of the pair's members in the tar, headers included; written last, with what the manifest needs
plan.parquet            see `mc2.curation.pack_plan`: which pairs of the pool are in which shard
manifest.json           `records.ShardManifest`

A shard holds the pairs that the plan says, without those whose image cannot be used: it may be a little short, and a shard of which nothing is left has an
index but no tar. Keys are those of the pool. Within a shard they are unique: where pool shards use the same key, the later pair's is `<pool shard>_<key>`.
"""

from __future__ import annotations

import io
import json
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mc2 import storage
from mc2.curation.duplicates_stage import check_duplicates
from mc2.curation.filters import PairFilter, filter_pair
from mc2.curation.images import PACKED_FORMATS, image_format
from mc2.curation.match_stage import matched_columns, sum_drops
from mc2.curation.pack_plan import ChoosePairs, ChosenCaption, PackSettings, Plan, make_plan
from mc2.curation.plugin import built_once, pickled
from mc2.curation.pool import pool_fingerprint, pool_has_images, pool_shards, read_pairs
from mc2.engines.engine import Engine
from mc2.engines.local import LocalEngine
from mc2.records import PackedCaption, Pair, ShardInfo, ShardManifest

# --- one pair -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PackedPair:
    """What is written of a pair. `extension` says what `image` is. `replaced`: a filter changed it."""

    key: str
    image: bytes
    extension: str
    captions: tuple[PackedCaption, ...]
    replaced: bool = False


def pack_pair(pair: Pair, chosen: Sequence[ChosenCaption], settings: PackSettings, filters: Sequence[PairFilter] = ()) -> PackedPair | str:
    """What to write of a pair, or the reason of its drop. Errors: ValueError if the pair is not the one that was matched, or a filter fails."""
    if any(index >= len(pair.captions) for index, _, _ in chosen):
        raise ValueError(f"pair {pair.key} has other captions than when it was matched; run `mc2 curate match` again into an empty folder")
    extension, drop = image_extension(pair.image, settings.max_pixels)
    if drop is not None:
        return drop
    captions = tuple(PackedCaption(pair.captions[index], language, entries) for index, language, entries in chosen)
    filtered = filter_pair(replace(pair, captions=tuple(caption.text for caption in captions)), filters)
    if isinstance(filtered, str):
        return filtered
    if filtered.image is not pair.image:
        extension, drop = image_extension(filtered.image, settings.max_pixels)
        if drop is not None:
            raise ValueError(f"pair {pair.key}: the image that the filters leave is a {drop}, need a JPEG, PNG or WebP; mend the filter")
    return PackedPair(pair.key, filtered.image or b"", extension, captions, filtered.image is not pair.image)


def image_extension(data: bytes | None, max_pixels: int) -> tuple[str, str | None]:
    """(extension, reason of a drop or None) of an encoded image. It is decoded, a JPEG at an eighth of its size: that still reads all of its bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images and of odd EXIF data; both are judged here
            with Image.open(io.BytesIO(data or b""), formats=tuple(PACKED_FORMATS)) as image:
                if image.width * image.height > max_pixels:
                    return "", "huge_image"
                extension = PACKED_FORMATS[image_format(image)]
                image.draft("RGB", (1, 1))
                image.load()
    except Image.DecompressionBombError:
        return "", "huge_image"
    except Exception:  # noqa: BLE001  (Pillow's decoders raise nearly everything on broken data: SyntaxError, struct.error, ...)
        return "", "broken_image"
    return extension, None


def member_key(key: str, pool_shard: str, taken: Collection[str]) -> str:
    """The key under which a pair is written: its own where that is free and a loader reads it back from a file name."""
    folder, slash, name = key.rpartition("/")
    key = folder + slash + (name.replace(".", "_") or "_")  # loaders take what is behind the first dot for the extension
    while key in taken:
        key = f"{Path(pool_shard).stem.replace('.', '_')}_{key.replace('/', '_')}"
    return key


# --- one shard ----------------------------------------------------------------------------------------------------------


@dataclass
class LanguageCounts:
    """What `ShardInfo` says of the languages of a shard, counted pair by pair in the order of the tar."""

    captions: Counter[str] = field(default_factory=Counter)
    pairs: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, languages: Sequence[str]) -> None:
        """A pair, by the languages of its captions."""
        self.captions.update(languages)
        for language in languages:
            self.pairs[language] += 1 / len(languages)

    def by_language(self) -> tuple[dict[str, int], dict[str, float]]:
        """`captions` and `pairs` of the shard; pairs to six digits."""
        return dict(sorted(self.captions.items())), {code: round(number, 6) for code, number in sorted(self.pairs.items())}


@lru_cache(maxsize=1)
def _plan_once(path: Path, shard_pairs: int, _fingerprint: str) -> Plan:
    return Plan.load(path, shard_pairs)


@dataclass(frozen=True)
class PackShard:
    """Writes the training shard of a name, unless it is there. Returns what the manifest says of it, the drops for the sake of images, and the replaced images.

    A worker holds one pair, and the matched captions of one pool shard.
    """

    pool: Path
    choose: ChoosePairs
    out: Path
    fingerprint: str
    filters: tuple[bytes, ...] = ()  # pickled factories

    def __call__(self, name: str) -> tuple[ShardInfo, dict[str, int], int]:
        index = self.out / f"{name}.index.parquet"
        if not index.exists():
            self._write(name, index)
        metadata = pq.read_metadata(index).metadata
        return ShardInfo(**json.loads(metadata[b"info"])), json.loads(metadata[b"drops"]), json.loads(metadata[b"replaced"])

    def _write(self, name: str, index: Path) -> None:
        drops: Counter[str] = Counter()
        path = self.out / f"{name}.tar"
        languages = LanguageCounts()
        rows: dict[str, tuple[int, int]] = {}
        replaced = 0
        with storage.atomic_write(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for pool_shard, pair in self._pairs(name, drops):
                offset, key = tar.offset, member_key(pair.key, pool_shard, rows)
                add_member(tar, f"{key}.{pair.extension}", pair.image)
                add_member(tar, f"{key}.json", packed_json(pair.captions))
                rows[key] = offset, tar.offset - offset
                replaced += pair.replaced
                languages.add([caption.language for caption in pair.captions])
        info = ShardInfo(name, len(rows), path.stat().st_size, storage.sha256_file(path), *languages.by_language())
        if not rows:
            path.unlink()  # loaders stumble over a shard without pairs
        offsets, sizes = zip(*rows.values(), strict=True) if rows else ((), ())
        columns = {"key": pa.array(rows, pa.string()), "offset": pa.array(offsets, pa.int64()), "size": pa.array(sizes, pa.int64())}
        notes = {"info": json.dumps(asdict(info)), "drops": json.dumps(sum_drops([drops])), "replaced": json.dumps(replaced)}
        table = pa.table(columns).replace_schema_metadata(notes)
        with storage.atomic_write(index) as file:
            pq.write_table(table, file, compression="zstd")

    def _pairs(self, name: str, drops: Counter[str]) -> Iterator[tuple[str, PackedPair]]:
        """The pairs of a training shard that stay, each with the name of its pool shard."""
        filters = [built_once(factory) for factory in self.filters]
        plan = _plan_once(self.out / "plan.parquet", self.choose.settings.shard_pairs, self.fingerprint)
        for pool_shard, first, last in plan.parts(name):
            for pair, chosen in self._chosen_pairs(self.pool / pool_shard, first, last):
                packed = pack_pair(pair, chosen, self.choose.settings, filters)
                if isinstance(packed, PackedPair):
                    yield pool_shard, packed
                else:
                    drops[packed] += 1

    def _chosen_pairs(self, shard: Path, first: int, last: int) -> Iterator[tuple[Pair, list[ChosenCaption]]]:
        """The chosen pairs [first, last) of a pool shard with their captions; no other image is read. Errors: ValueError if one is not there."""
        chosen = dict(islice(self.choose.choose(shard)[0].items(), first, last))
        counted_by_match: Counter[str] = Counter()
        for pair in read_pairs(shard, counted_by_match, chosen.keys(), matched_columns(self.choose.matched)):
            if pair.key in chosen:
                yield pair, chosen.pop(pair.key)
            if not chosen:
                return
        raise ValueError(
            f"{shard}: {len(chosen)} pairs that were matched are not there any more ({next(iter(chosen))}, ...); "
            "copy the shard again, or run all stages again into an empty folder"
        )


def packed_json(captions: Sequence[PackedCaption]) -> bytes:
    """The record of a pair in a training shard."""
    rows = [
        {"text": caption.text, "language": caption.language, "entries": caption.entries} for caption in captions
    ]  # asdict would copy every number
    return json.dumps({"captions": rows}, ensure_ascii=False, separators=(",", ":")).encode()


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a file with a header that depends on nothing but name and size (no time, no owner)."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
    vars(tar)["members"] = []  # tarfile keeps every member otherwise: memory that grows with the shard


# --- all shards ---------------------------------------------------------------------------------------------------------


def run_pack(
    pool: str | Path,
    matched: str | Path,
    balance: str | Path,
    out: str | Path,
    settings: PackSettings | None = None,
    engine: Engine | None = None,
    duplicates: str | Path | None = None,
    filters: Sequence[Callable[[], PairFilter]] = (),
) -> ShardManifest:
    """Pack a matched pool, without its duplicates if their folder is given, through the filters in their order.

    Returns the manifest, with the drops of match and pack summed. Errors: ValueError for folders that do not belong together, and for filters that cannot be
    built or fail on a pair.
    """
    settings, engine = settings or PackSettings(), engine or LocalEngine()
    pool, matched, balance, out = Path(pool), Path(matched), Path(balance), Path(out)
    shards = pool_shards(pool)
    match_done, balance_done = (
        storage.finished(matched, "match", "mc2 curate match"),
        storage.finished(balance, "balance", "mc2 curate balance"),
    )
    duplicates = Path(duplicates) if duplicates is not None else None
    check_chain(matched, balance, shards, match_done["fingerprint"], duplicates)
    if not pool_has_images(shards, matched_columns(matched)):
        raise ValueError(
            f"{pool}: found no images in the pool, need them to pack; write the list of their URLs with `mc2 curate urls`, download them, and match again"
        )
    inputs = {"matched": match_done["fingerprint"], "balance": balance_done["fingerprint"], **vars(settings)}
    inputs["filters"] = [factory().identity for factory in filters]
    travelling = tuple(pickled("filter", factory) for factory in filters)
    with storage.Stage(out, "pack", inputs) as stage:
        if not stage.done:
            choose = ChoosePairs(matched, balance, balance_done["fingerprint"], settings, duplicates)
            plan = make_plan(out / "plan.parquet", choose, shards, engine)
            packed = engine.map("pack", PackShard(pool, choose, out, stage.fingerprint, travelling), plan.names)
            drops = sum_drops([match_done["results"]["drops"], plan.drops, *(part for _, part, _ in packed)])
            fingerprints = {"metadata": storage.read_json(matched / "inputs.json")["metadata"], "balance": balance_done["fingerprint"]}
            replaced = sum(number for _, _, number in packed)
            manifest = ShardManifest(
                tuple(info for info, _, _ in packed if info.num_pairs), drops, fingerprints, replaced, settings.balanced
            )
            if not manifest.shards:
                raise ValueError(f"{out}: no pair is left (drops: {drops}); check the pool, or loosen the settings of match and balance")
            storage.write_json(out / "manifest.json", manifest.to_json())
            stage.finish({"pairs": manifest.num_pairs})
    return ShardManifest.from_json(storage.read_json(out / "manifest.json"))


def check_chain(matched: Path, balance: Path, shards: list[Path], fingerprint: str, duplicates: Path | None = None) -> None:
    """Errors: ValueError if the match is of another pool, or the balance of another match (its fingerprint is given) or without other duplicates."""
    pool = pool_fingerprint(shards)
    if storage.read_json(matched / "inputs.json")["pool"] != pool:
        raise ValueError(
            f"{shards[0].parent}: is not the pool that {matched} was matched from (names or sizes differ); run `mc2 curate match` again"
        )
    if storage.read_json(balance / "inputs.json")["matched"] != fingerprint:
        raise ValueError(f"{balance}: was balanced over another match than {matched}; run `mc2 curate balance` again")
    without, balanced_without = check_duplicates(duplicates, pool), storage.read_json(balance / "inputs.json")["duplicates"]
    if without != balanced_without:
        raise ValueError(
            f"{balance}: was balanced over the pool without the duplicates {balanced_without}, need without {without} (None: over all pairs); "
            "give the same --duplicates to `mc2 curate balance` and `mc2 curate pack`, or to neither"
        )
