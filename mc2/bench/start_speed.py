"""Seconds from the start of a process to its first batch, on many shards: at the beginning of a run and in the middle of one. The shards are links to one tar."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mc2 import storage
from mc2.curation.pack_stage import add_member, packed_json
from mc2.records import PackedCaption, ShardInfo, ShardManifest

STEPS_BEFORE = 20  # of the run that is gone on with

# A loader in a process of its own: the clock starts before Python does. What a run imports beside it (Lightning) is measured apart.
CHILD = """
import json, os, sys, time
import torch
from mc2.data.shard_data import ShardData
from mc2.data.preprocess import ImagePreprocess
imported = time.time()
shards, tokenizer, state, batch, workers, steps = sys.argv[1:]
data = ShardData(shards, tokenizer, batch_size=int(batch), num_workers=int(workers), preprocess=ImagePreprocess(image_size=224))
loader = data.loader(0, 1)
if os.path.exists(state):
    loader.load_state_dict(torch.load(state, weights_only=True))
batches = iter(loader)
next(batches)
first = time.time()
for _ in range(int(steps) - 1):
    next(batches)
torch.save(loader.state_dict(), state)
print(json.dumps({"imported": imported, "first": first}))
"""

LIGHTNING = "import time, torch; begin = time.time(); import lightning.pytorch; print(time.time() - begin)"


def write_shards(folder: Path, shards: int, pairs: int, image: bytes) -> None:
    """`shards` shards of `pairs` pairs with manifest and indexes, as `mc2 curate pack` leaves them; all are the same file."""
    folder.mkdir(parents=True)
    rows = []
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for pair in range(pairs):
            offset = tar.offset
            add_member(tar, f"{pair:06d}.jpg", image)
            add_member(tar, f"{pair:06d}.json", packed_json([PackedCaption("a red fox in the snow", "en")]))
            rows.append((offset, tar.offset - offset))
    offsets, sizes = zip(*rows, strict=True)
    pq.write_table(pa.table({"offset": offsets, "size": sizes}), folder / "00000.index.parquet")
    names = [f"{number:05d}" for number in range(shards)]
    for name in names[1:]:
        for ending in (".tar", ".index.parquet"):
            os.link(folder / f"00000{ending}", folder / f"{name}{ending}")
    info = ShardInfo("", pairs, (folder / "00000.tar").stat().st_size, "0" * 64, {"en": pairs}, {"en": pairs})
    infos = tuple(ShardInfo(**{**asdict(info), "name": name}) for name in names)
    storage.write_json(folder / "manifest.json", ShardManifest(infos, {}, {}).to_json())


def measure(folder: Path, tokenizer: Path, batch: int, workers: int, repeats: int) -> dict[str, Any]:
    """Median seconds of each part. resumed: the middle of a run of STEPS_BEFORE steps."""
    found: dict[str, list[dict[str, float]]] = {"started": [], "resumed": []}
    for number in range(repeats):
        state = folder.parent / f"state-{number}.pt"
        for name, steps in (("started", STEPS_BEFORE), ("resumed", 1)):
            begin = time.time()
            arguments = [str(folder), str(tokenizer), str(state), str(batch), str(workers), str(steps)]
            done = subprocess.run([sys.executable, "-c", CHILD, *arguments], check=True, stdout=subprocess.PIPE, text=True)
            times = json.loads(done.stdout.splitlines()[-1])
            found[name].append({"imports": times["imported"] - begin, "first_batch": times["first"] - begin})
    return {name: {part: median(each[part] for each in rounds) for part in rounds[0]} for name, rounds in found.items()}


def lightning_seconds(repeats: int) -> float:
    """Median of what a run spends on Lightning's import, beside that of torch."""
    return median(
        float(subprocess.run([sys.executable, "-c", LIGHTNING], check=True, stdout=subprocess.PIPE, text=True).stdout)
        for _ in range(repeats)
    )
