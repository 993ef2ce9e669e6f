"""Which pairs go into which training shard: a function of the matched captions, known before any image is read.

plan.parquet   per pool shard, in order: its name, the number of its first pair among all pairs that were chosen, how many of its pairs were chosen
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage
from mc2.curation.balance import draw_captions
from mc2.curation.balance_stage import probabilities_once
from mc2.curation.images import check_max_pixels
from mc2.curation.match_stage import sum_drops
from mc2.curation.matched import MatchedShard
from mc2.engines.engine import Engine

# "online": all matched captions are packed, the loader draws afresh each epoch. "offline": one draw now, for good; shards are smaller.
Balancing = Literal["online", "offline"]

# (index of the caption in its pair, language, entries)
ChosenCaption = tuple[int, str, tuple[int, ...]]


@dataclass(frozen=True)
class PackSettings:
    """How shards are packed.

    `seed` and `epoch` key the draws of offline balancing. `max_pixels`: an image whose header says more is dropped undecoded. `shard_pairs`: pairs of a
    training shard before broken images are dropped from it. Errors: ValueError for a number that is out of range.
    """

    balanced: Balancing = "online"
    seed: int = 0
    epoch: int = 0
    max_pixels: int = 64_000_000
    shard_pairs: int = 10_000

    def __post_init__(self) -> None:
        check_max_pixels(self.max_pixels)
        if self.shard_pairs < 1:
            raise ValueError(f"pack: found shard_pairs {self.shard_pairs}, need at least 1")


# --- one pool shard -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChoosePairs:
    """Everything about a pool shard that is decided without its images."""

    matched: Path
    balance: Path
    fingerprint: str
    settings: PackSettings
    duplicates: Path | None = None

    def __call__(self, shard: Path) -> tuple[int, dict[str, int]]:
        """The number of pairs to pack, and the drops."""
        chosen, drops = self.choose(shard)
        return len(chosen), sum_drops([drops])

    def choose(self, shard: Path) -> tuple[dict[str, list[ChosenCaption]], Counter[str]]:
        """The captions to pack by key, in the order of the pool, and the drops. Packing drops further pairs only for their images."""
        matched = MatchedShard.read(self.matched / f"{shard.stem}.parquet", self.duplicates)
        captions = np.arange(len(matched.pair))
        if self.settings.balanced == "offline":
            match_prob = matched.match_prob(probabilities_once(self.balance, self.fingerprint))
            accepted = matched.accepted(match_prob, self.settings.seed, self.settings.epoch)
            captions = draw_captions(matched.keys, matched.pair, accepted, self.settings.seed, self.settings.epoch)
        chosen: dict[str, list[ChosenCaption]] = {}
        ends = np.cumsum(matched.lengths)
        for number in captions.tolist():
            entries = matched.entry_ids[ends[number] - matched.lengths[number] : ends[number]].tolist()
            caption = (int(matched.caption_index[number]), matched.languages[matched.language[number]], tuple(entries))
            chosen.setdefault(matched.keys[matched.pair[number]], []).append(caption)
        drops = Counter(matched.duplicates)
        drops["no_captions"] = matched.num_pairs - len(matched.keys) - drops.total()
        drops["balanced_away"] = len(matched.keys) - len(chosen)
        return chosen, +drops


# --- all pool shards ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Training shard number k holds the pairs [k * shard_pairs, (k + 1) * shard_pairs) of all that were chosen, in the order of the pool.

    first_pair: of each pool shard the number of its first pair, and last the number of all pairs.
    """

    pool_shards: Sequence[str]
    first_pair: NDArray[np.int64]
    shard_pairs: int
    drops: Mapping[str, int]

    @property
    def names(self) -> list[str]:
        """Names of the training shards, which sort in the order of their pairs."""
        number = -(-int(self.first_pair[-1]) // self.shard_pairs)
        digits = max(5, len(str(number - 1)))
        return [f"{shard:0{digits}d}" for shard in range(number)]

    def parts(self, name: str) -> list[tuple[str, int, int]]:
        """(pool shard, first pair in it, pair behind the last) of a training shard."""
        start = int(name) * self.shard_pairs
        stop = min(start + self.shard_pairs, int(self.first_pair[-1]))
        touched = range(int(np.searchsorted(self.first_pair, start, "right")) - 1, int(np.searchsorted(self.first_pair, stop, "left")))
        bounds = [
            (shard, *(np.clip([start, stop], *self.first_pair[shard : shard + 2]) - self.first_pair[shard]).tolist()) for shard in touched
        ]
        return [(self.pool_shards[shard], first, last) for shard, first, last in bounds if first < last]

    @classmethod
    def load(cls, path: Path, shard_pairs: int) -> Plan:
        table = pq.read_table(path)
        first_pair = np.concatenate([table["first_pair"].to_numpy(), [pc.sum(table["num_pairs"]).as_py()]])
        return cls(table["pool_shard"].to_pylist(), first_pair, shard_pairs, json.loads(table.schema.metadata[b"drops"]))


def make_plan(path: Path, choose: ChoosePairs, shards: Sequence[Path], engine: Engine) -> Plan:
    """The plan of a folder; made and written if it is not there yet."""
    if not path.exists():
        counted = engine.map("plan", choose, shards)
        numbers = np.array([number for number, _ in counted], np.int64)
        columns = {"pool_shard": [shard.name for shard in shards], "first_pair": np.cumsum(numbers) - numbers, "num_pairs": numbers}
        drops = sum_drops([part for _, part in counted])
        with storage.atomic_write(path) as file:
            pq.write_table(pa.table(columns).replace_schema_metadata({"drops": json.dumps(drops)}), file, compression="zstd")
    return Plan.load(path, choose.settings.shard_pairs)
