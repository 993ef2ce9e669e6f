"""Training and validation batches from folders of shards, all settings checked: the data module without Lightning, whose import takes longer than all that is here."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from mc2 import languages as language_codes
from mc2 import storage
from mc2.curation.balance import Balance
from mc2.data.batch import PairBatch
from mc2.data.data_sets import DataSet, Mixture, Source, numbered
from mc2.data.gpu_decode import GpuDecoder, can_decode
from mc2.data.language_shares import LanguageShares
from mc2.data.layout import fitting
from mc2.data.loader import CPU, BatchStream, Loader, Share
from mc2.data.preprocess import ImagePreprocess
from mc2.data.remote import RemoteCache
from mc2.data.samples import Sample, SampleMaker, collate, drop_reasons, nothing_usable
from mc2.data.shard_folder import ShardFolder, open_folder
from mc2.data.shard_index import indexed
from mc2.data.shard_reader import ShardReader
from mc2.data.shard_stream import Plan, TooFewShards
from mc2.data.shuffle import summary
from mc2.data.stages import Laps
from mc2.data.tokenizer import Tokenizer
from mc2.data.views import ViewConfig, Views


class ShardData:
    """PairBatch after PairBatch from training shards, in an order that a seed fixes and a checkpoint resumes.

    shards: folder of tars, ours or plain img2dataset ones; or a list of data sets with weights. tokenizer: folder with tokenizer.model. balance: folder of the
    balance for on-line balancing (None: every pair of every pass); in a list each data set has its own. batch_size: pairs on one rank. steps_per_epoch: batches of a virtual epoch; it only
    says when Lightning counts one.
    languages: only captions of these (None: all; shards without language labels cannot be filtered). without_languages: all captions but those of these.
    language_shares: a temperature and upper bounds on top of what curation left, in each data set.
    shuffle_shards, shuffle_block: records are shuffled over this many shards at once, this many records of each.
    lanes, streams_per_lane: canonical streams (see `shard_stream`); open: one lane a worker and one stream a rank. Fix them to multiples of
    the workers and ranks to come, and the order stays the same on another number of them.
    cache_bytes: memory of each worker for records and decoded images of small data sets, kept over passes.
    val_shards, val_pairs: the validation set is the first val_pairs usable pairs of this folder, as far as they fill batches of all ranks, without crops
    and balancing; of the (first) `shards` if it is None (then nothing is held out: give val_shards to watch for over-fitting).
    remote_cache: what is kept on the disk of shards behind a URL ("https://...", "s3://...").
    gpu_decode: JPEGs of the training set are decoded and cropped on the GPU where torchvision has nvJPEG, and by the workers as always where it has not.

    Errors: ValueError at construction for settings and tokenizer, in `loader` for shards and balance, before the first step.
    """

    def __init__(
        self,
        shards: str | list[DataSet],
        tokenizer: str,
        balance: str | None = None,
        batch_size: int = 256,
        steps_per_epoch: int = 500,
        num_workers: int = 0,
        seed: int = 0,
        context_length: int = 77,
        preprocess: ImagePreprocess = ImagePreprocess(),  # noqa: B008  (frozen)
        languages: list[str] | None = None,
        without_languages: list[str] | None = None,
        language_shares: LanguageShares = LanguageShares(),  # noqa: B008  (frozen)
        shuffle_shards: int = 8,
        shuffle_block: int = 128,
        lanes: int | None = None,
        streams_per_lane: int | None = None,
        cache_bytes: int = 0,
        val_shards: str | None = None,
        val_pairs: int = 1024,
        remote_cache: RemoteCache = RemoteCache(),  # noqa: B008  (frozen)
        gpu_decode: bool = False,
    ) -> None:
        super().__init__()  # Lightning's, where this is a data module
        least = {
            "batch_size": (batch_size, 1),
            "steps_per_epoch": (steps_per_epoch, 1),
            "num_workers": (num_workers, 0),
            "cache_bytes": (cache_bytes, 0),
            "val_pairs": (val_pairs, 1),
        }
        for name, (value, minimum) in least.items():
            if value < minimum:
                raise ValueError(f"data: found {name} {value}, need at least {minimum}")
        self.data_sets = [DataSet(shards, balance=balance)] if isinstance(shards, str) else list(shards)
        if not self.data_sets:
            raise ValueError("data.shards: found an empty list, need at least one data set")
        if balance is not None and not isinstance(shards, str):
            raise ValueError("data.balance: found one beside a list of data sets, need it in the list: each data set has its own")
        self.val_shards = val_shards or self.data_sets[0].shards
        self.language_shares, self.remote_cache, self.gpu_decode = language_shares, remote_cache, gpu_decode
        self.batch_size, self.steps_per_epoch, self.num_workers, self.seed = batch_size, steps_per_epoch, num_workers, seed
        self.shuffle_shards, self.shuffle_block, self.cache_bytes, self.val_pairs = shuffle_shards, shuffle_block, cache_bytes, val_pairs
        self.layout = {name: value for name, value in (("lanes", lanes), ("streams_per_lane", streams_per_lane)) if value is not None}
        self.languages = None if languages is None else frozenset(language_codes.canonical(code) for code in languages)
        if self.languages is not None and not self.languages:
            raise ValueError("data: found an empty list of languages, need at least one; leave `languages` out for all")
        if languages is not None and without_languages is not None:
            raise ValueError(
                "data: found languages and without_languages, need at most one of them; name those to keep or those to leave out"
            )
        self.without = frozenset(language_codes.canonical(code) for code in without_languages or ())
        self.preprocess, self.context_length = preprocess, context_length
        self.tokenizer = Tokenizer(tokenizer, context_length)
        self.vocab_size, self.eos_id = self.tokenizer.vocab_size, self.tokenizer.eos_id
        self._sources: tuple[Source, ...] = ()
        self._views = Views()
        self._evaluate = SampleMaker(preprocess, seed, None, self.languages, self.without)
        self.val_drops: Counter[str] = Counter()  # by reason

    @property
    def rejects(self) -> bool:
        """Whether captions are accepted and rejected on the way, by balancing or by language_shares."""
        return not self.language_shares.as_curated or any(data_set.balance is not None for data_set in self.data_sets)

    def open(self) -> None:
        """Open the training shards, once. Errors: ValueError for shards or a balance that are not as they should be."""
        if not self._sources:
            names = numbered([data_set.label for data_set in self.data_sets])
            self._sources = tuple(self._source(data_set, name) for data_set, name in zip(self.data_sets, names, strict=True))

    def _source(self, data_set: DataSet, name: str) -> Source:
        folder = open_folder(data_set.shards, self.remote_cache)
        if data_set.balance is not None:
            check_balance(data_set.balance, folder)
        folder = indexed(folder)
        plan = Plan(folder, self.seed, shuffle_shards=self.shuffle_shards, shuffle_block=self.shuffle_block)
        reader = ShardReader(folder, self.cache_bytes // len(self.data_sets))
        return Source(name, data_set.weight, plan, self._maker(data_set, folder.pairs), reader)

    def _maker(self, data_set: DataSet, pairs: Mapping[str, float]) -> SampleMaker:
        probabilities = None if data_set.balance is None else Balance.load(data_set.balance).probabilities
        maker = SampleMaker(self.preprocess, self.seed, probabilities, self.languages, self.without, self._views)
        if pairs and not any(maker.takes(code) for code in pairs):
            name, chosen = ("languages", self.languages) if self.languages else ("without_languages", self.without)
            raise ValueError(
                f"data.{name}: found {sorted(chosen)}, which leaves nothing of {data_set.shards}; its captions are in {sorted(pairs)}"
            )
        if self.language_shares.as_curated:
            return maker
        return replace(maker, language_keep=self.language_shares.keep_probabilities(expected_pairs(data_set, pairs, maker)))

    def expected_shares(self) -> dict[str, float]:
        """The share of each language in the pairs of training, as manifest and balance of the shards have it; empty where they do not say."""
        self.open()
        shares: Counter[str] = Counter()
        for data_set, source in zip(self.data_sets, self._sources, strict=True):
            pairs = expected_pairs(data_set, source.plan.folder.pairs, source.maker)
            kept = {code: number * (source.maker.language_keep or {}).get(code, 1.0) for code, number in pairs.items()}
            if not sum(kept.values()):
                return {}
            for code, number in kept.items():
                shares[code] += source.weight * number / sum(kept.values())  # type: ignore[assignment]  # Counter of shares
        total = sum(shares.values())
        return {code: share / total for code, share in shares.items()}

    def show(self, views: Mapping[str, ViewConfig]) -> None:
        """From now on batches also have what these models read, where it differs. Errors: ValueError for a tokenizer that is not there."""
        self._views = Views.needed(views, self.tokenizer, self.preprocess)
        self._evaluate = replace(self._evaluate, views=self._views)
        self._sources = tuple(replace(source, maker=replace(source.maker, views=self._views)) for source in self._sources)

    def loader(self, rank: int, world_size: int, device: torch.device | None = None) -> Loader:
        """A fresh loader of the training batches of one rank. device: for a GPU their memory is pinned, and `gpu_decode` decodes there.

        Errors: ValueError for numbers of shards, ranks, workers and rows that do not fit.
        """
        self.open()
        layout = {"lanes": max(1, self.num_workers), "streams_per_lane": world_size, **self.layout}
        sources, decoder = self._sources, None
        if self.gpu_decode and device and can_decode(device):
            sources = tuple(replace(source, maker=replace(source.maker, gpu_decode=True)) for source in sources)
            decoder = GpuDecoder(self.preprocess, device)
        elif self.gpu_decode and device and rank == 0:
            warnings.warn(f"data.gpu_decode: torchvision has no nvJPEG for {device}; the workers decode, as without it", stacklevel=2)
        try:
            mixture = Mixture(sources).with_layout(**layout)
        except TooFewShards as error:
            num_shards = min(len(source.plan.folder.names) for source in sources)
            cure = fitting(num_shards, self.layout, world_size, self.batch_size, self.num_workers)
            raise ValueError(f"{error}; {cure}, or pack into more shards") from error
        batches = BatchStream(mixture, Share(rank, world_size, self.batch_size), self.tokenizer)
        return Loader(batches, self.steps_per_epoch, self.num_workers, self.layout, device or CPU, decoder)

    def summary(self, world_size: int) -> list[str]:
        """A line for each data set: its size, how it is dealt out to so many ranks, and how well it is shuffled. Errors: those of `loader`."""
        sources = self.loader(0, world_size).mixture.sources
        total = sum(source.weight for source in sources)
        return [
            summary(source.name, source.plan, max(1, round(self.batch_size * world_size * source.weight / total))) for source in sources
        ]

    def validation(self, rank: int, world_size: int) -> FixedBatches:
        """A rank's part of the fixed validation set, the same number of full batches on every rank. Errors: ValueError for fewer pairs than ranks."""
        folder = indexed(open_folder(self.val_shards, self.remote_cache))
        self.val_drops.clear()
        samples = list(islice(self._val_samples(folder), self.val_pairs))
        rows = min(self.batch_size, len(samples) // world_size)
        if not samples:
            raise nothing_usable(self.val_drops, folder.path)
        if not rows:
            raise ValueError(
                f"{folder.path}: found {len(samples)} usable pairs for validation, need at least one for each of {world_size} ranks"
            )
        starts = range(rank * rows, len(samples) - world_size * rows + rank * rows + 1, world_size * rows)
        return FixedBatches([collate(samples[start : start + rows], self.tokenizer, self._views, Laps()) for start in starts])

    def _val_samples(self, folder: ShardFolder) -> Iterator[Sample]:
        reader = ShardReader(folder)
        for name in folder.names:
            for record in reader.read(name):
                sample = self._evaluate.evaluate(record)
                self.val_drops.update(drop_reasons(record, sample))
                if isinstance(sample, Sample):
                    yield sample


def check_balance(balance: str, folder: ShardFolder) -> None:
    """Errors: ValueError for the balance of other shards: whose entries have other numbers, or for shards that are balanced already."""
    if folder.balanced:
        raise ValueError(
            f"data.balance: found {balance}, need null: {folder.path} is balanced already (`--balanced offline`), its captions would be thinned out twice"
        )
    metadata = storage.read_json(Path(balance) / "balance.json").get("fingerprints", {}).get("metadata", "")
    if metadata and folder.metadata and metadata != folder.metadata:
        raise ValueError(
            f"data.balance: {balance} was made with other metadata than {folder.path}; give the balance that the shards were packed with"
        )


def expected_pairs(data_set: DataSet, pairs: Mapping[str, float], maker: SampleMaker) -> dict[str, float]:
    """The number of pairs of each language in a pass, of the languages that are used: by the balance, or those of the manifest."""
    expected: Mapping[str, float] = pairs
    if data_set.balance is not None:
        rows = storage.read_json(Path(data_set.balance) / "balance.json")["languages"]
        expected = {code: row.get("expected_pairs", 0) for code, row in rows.items()}
    return {code: number for code, number in expected.items() if maker.takes(code)}


class FixedBatches:
    """Batches in memory, the same in every validation. No DataLoader: there is nothing left to load."""

    def __init__(self, batches: list[PairBatch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[PairBatch]:
        return iter(self._batches)
