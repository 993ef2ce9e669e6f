"""Samples a second of the training loader, stage by stage and with workers, and open_clip's webdataset pipeline beside it on the same shards.

Imports torch: only `mc2 bench loader` imports this. Both sides crop at random with the same settings and cut captions with the same pieces; theirs gives normalised
fp32 images, ours uint8 ones, because the model normalises on the device.
"""

from __future__ import annotations

import math
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import default_collate

from mc2 import storage
from mc2.bench.clocks import Clock
from mc2.data.datamodule import ShardDataModule
from mc2.data.gpu_decode import can_decode
from mc2.data.preprocess import ImagePreprocess
from mc2.data.samples import Drop, SampleMaker
from mc2.data.shard_folder import open_folder
from mc2.data.shard_index import indexed
from mc2.data.shard_reader import ShardReader
from mc2.data.stages import STAGES
from mc2.data.tokenizer import Tokenizer
from mc2.interchange.convert import named_towers
from mc2.training.flops import PEAK_FLOPS, PairFlops, meta_towers

GPU = torch.device("cuda")
OURS, THEIRS = "mc2", "open_clip"
MODELS = ("ViT-S-16", "ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-H-14-quickgelu", "ViT-bigG-14")
Round = Callable[[int, int], Iterator[int]]  # (workers, batches) -> the token ids of each batch that are not padding


@dataclass(frozen=True)
class Setting:
    """What is measured: batches of `batch` pairs from a folder of shards, so many of them in a round."""

    shards: Path
    tokenizer: Path
    image_size: int
    batch: int
    batches: int
    repeats: int
    context_length: int = 77
    gpu_decode: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "batches", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"loader: found {name} {getattr(self, name)}, need at least 1")
        if self.gpu_decode and not can_decode(GPU):
            raise ValueError("loader: found --gpu_decode, need a GPU and a torchvision with nvJPEG; leave it out to measure the workers")


def our_round(setting: Setting) -> Round:
    """Batches of `mc2 fit`'s loader."""

    def run(workers: int, batches: int) -> Iterator[int]:
        module = ShardDataModule(
            str(setting.shards),
            str(setting.tokenizer),
            batch_size=setting.batch,
            steps_per_epoch=batches,
            num_workers=workers,
            context_length=setting.context_length,
            preprocess=ImagePreprocess(image_size=setting.image_size),
            gpu_decode=setting.gpu_decode,
        )
        pad = module.tokenizer.pad_id
        for batch in module.loader(0, 1, GPU if setting.gpu_decode else None):
            if setting.gpu_decode:
                torch.cuda.synchronize()
            yield int((batch.tokens != pad).sum())

    return run


def their_round(setting: Setting, folder: Path) -> Round:
    """Batches of open_clip's training loader, with its transform and its wrapper of the same tokenizer. Errors: ValueError if its ids differ from ours."""
    import open_clip
    from open_clip_train import data as open_clip_data

    from mc2.interchange.tokenizer_files import write_tokenizer_files

    if not isinstance(open_clip_data.tar_file_expander, _WithoutMarks):
        open_clip_data.tar_file_expander = _WithoutMarks(open_clip_data.tar_file_expander)
    ours = Tokenizer(setting.tokenizer, setting.context_length)
    folder.mkdir(parents=True)
    write_tokenizer_files(folder, ours)
    tokenizer = open_clip.tokenizer.HFTokenizer(str(folder), context_length=setting.context_length)
    texts = _some_captions(setting.shards)
    for text in texts:
        row = ours([text])[0].tolist()
        if tokenizer(text)[0, : len(row)].tolist() != row:
            raise ValueError(f"loader: open_clip cuts {text!r} into other pieces: the sides do not do the same work")
    preprocess = ImagePreprocess(image_size=setting.image_size)
    transform = open_clip.image_transform(
        setting.image_size, is_train=True, aug_cfg={"scale": preprocess.scale}, mean=preprocess.mean, std=preprocess.std
    )
    names = open_folder(setting.shards).names

    def run(workers: int, batches: int) -> Iterator[int]:
        args = SimpleNamespace(
            train_data="::".join(str(setting.shards / name) for name in names),
            train_num_samples=setting.batch * math.ceil(batches / max(workers, 1)) * max(workers, 1),
            train_data_upsampling_factors=None,
            dataset_resampled=False,
            batch_size=setting.batch,
            workers=workers,
            world_size=1,
            seed=0,
        )
        loader = open_clip_data.get_wds_dataset(args, transform, is_train=True, tokenizer=tokenizer).dataloader
        for _, tokens in islice(loader, batches):
            yield int((tokens != ours.pad_id).sum())

    return run


class _WithoutMarks:
    """webdataset's reader of tars without the empty mark that it puts at the end of each since 1.0, which open_clip does not know."""

    def __init__(self, expander: Any) -> None:
        self.expander = expander

    def __call__(self, *arguments: Any, **settings: Any) -> Iterator[dict[str, Any]]:
        return (file for file in self.expander(*arguments, **settings) if file)


def _some_captions(shards: Path) -> list[str]:
    """Of the first records. Errors: ValueError if they have no `.txt`, which is what open_clip reads."""
    with tarfile.open(shards / open_folder(shards).names[0]) as tar:
        members = [member for member in islice(tar, 200) if member.name.endswith(".txt")]
        texts = [file.read().decode() for member in members if (file := tar.extractfile(member)) is not None]
    if not texts:
        raise ValueError(f"{shards}: found no <key>.txt in the first records, need them for open_clip; leave --against out")
    return texts


# --- the measurement ----------------------------------------------------------------------------------------------------


def measure(setting: Setting, workers: list[int], against: Path | None) -> dict[str, Any]:
    """Figures of our side, and of open_clip's with a folder for its tokenizer; rounds in turn, the best one counts."""
    sides: dict[str, Round] = {OURS: our_round(setting)}
    if against is not None:
        sides[THEIRS] = their_round(setting, against)
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {str(number): [] for number in workers} for name in sides}
    for _ in range(setting.repeats):
        for number in workers:
            for name, run in sides.items():
                found[name][str(number)].append(timed(run, number, setting))
    best = {
        name: {number: max(rounds, key=lambda each: each["samples_per_second"]) for number, rounds in of_side.items()}
        for name, of_side in found.items()
    }
    image_bytes, tar_bytes = _bytes_a_record(setting.shards)
    return {
        "image_bytes": image_bytes,
        "bytes_per_record": tar_bytes,
        "stages": stages(setting),
        "sides": {name: {"workers": best[name], "rounds": found[name]} for name in sides},
        "ratio": {number: best[OURS][number]["samples_per_second"] / best[THEIRS][number]["samples_per_second"] for number in best[OURS]}
        if against is not None
        else None,
    }


def timed(run: Round, workers: int, setting: Setting) -> dict[str, float]:
    """Samples and tokens a second once every worker has delivered its first batch; without workers the processor time of a sample too."""
    warm = max(workers, 1)
    batches = run(workers, warm + setting.batches)
    for _ in range(warm):
        next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    tokens = sum(islice(batches, setting.batches))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for _ in batches:  # to the end, so that the workers stop
        pass
    samples = setting.batch * setting.batches
    figures = {"samples_per_second": samples / wall, "tokens_per_second": tokens / wall}
    return figures if workers else {**figures, "cpu_seconds_per_sample": cpu / samples}


def stages(setting: Setting) -> dict[str, float]:
    """Processor seconds of a sample by stage: the steps of the loader, one after the other in this process."""
    folder, preprocess = indexed(open_folder(setting.shards)), ImagePreprocess(image_size=setting.image_size)
    maker, tokenizer = SampleMaker(preprocess, seed=0), Tokenizer(setting.tokenizer, setting.context_length)
    reader, clock = ShardReader(folder), Clock(time.process_time)
    records = (record for name in folder.names for record in reader.read(name))
    number = 0
    while number < setting.batch * setting.batches:
        with clock("read"):
            chunk = list(islice(records, setting.batch))
        if not chunk:
            break
        images, texts = [], []
        for record in chunk:
            caption = maker.draw(record, 0)
            if isinstance(caption, Drop) or not isinstance(record.image, bytes):
                continue
            try:
                with clock("decode"):
                    picture = preprocess.decode(record.image)
            except ValueError:  # broken or huge: the loader counts and replaces it
                continue
            with clock("transform"):
                images.append(preprocess.train(picture, storage.keyed_hash(0, "crop", 0, record.key)))
            texts.append(caption.text)
        with clock("tokenize"):
            tokenizer(texts)
        with clock("collate"):
            default_collate(images)
        number += len(images)
    if not number:
        raise ValueError(f"{setting.shards}: no record can be used; look at the shards")
    return {stage: clock.seconds[stage] / number for stage in STAGES}


def _bytes_a_record(shards: Path) -> tuple[float, float]:
    """Median size of the images, mean size of a record in its tar, of the first shard."""
    folder = open_folder(shards)
    records = list(ShardReader(folder).read(folder.names[0]))
    images = [len(record.image) for record in records if isinstance(record.image, bytes)]
    return float(median(images or [0])), (shards / folder.names[0]).stat().st_size / max(len(records), 1)


# --- what that feeds ----------------------------------------------------------------------------------------------------


def appetite(gpu: str, mfu: float, tokens: int, batch: int) -> dict[str, float]:
    """Samples a second that one GPU takes of each model of the zoo, at a share of its peak speed, in a global batch of 32,768.

    Errors: ValueError for a GPU whose peak speed is not known.
    """
    if gpu not in PEAK_FLOPS:
        raise ValueError(f"loader: found --gpu {gpu!r}, need one of {', '.join(PEAK_FLOPS)}")
    if not 0 < mfu <= 1:
        raise ValueError(f"loader: found --mfu {mfu}, need a share above 0 and at most 1")
    return {name: mfu * PEAK_FLOPS[gpu] / _pair_flops(name).step(tokens, batch) for name in MODELS}


@lru_cache
def _pair_flops(name: str) -> PairFlops:
    return PairFlops.of(meta_towers(named_towers(name)))
