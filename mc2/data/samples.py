"""A record of a shard becomes a sample of this pass: one caption drawn and balanced, the image decoded and cropped.

B samples become a PairBatch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mc2 import storage
from mc2.curation.balance import FloatArray, accept_caption, drawn_caption
from mc2.data.batch import PairBatch
from mc2.data.gpu_decode import EncodedCrop, left_to_gpu
from mc2.data.preprocess import BrokenImage, HugeImage, ImagePreprocess
from mc2.data.shard_reader import Record, ShardReader
from mc2.data.stages import Laps
from mc2.data.tokenizer import Tokenizer
from mc2.data.views import Views
from mc2.records import PackedCaption

BLACK = torch.zeros((), dtype=torch.uint8)


class Sample(NamedTuple):
    """One image, uint8 (3, H, W), with one caption. others: the same crop in the sizes of `Views`. file: what the GPU makes the image and the others from, which
    are black until then.
    """

    image: Tensor
    text: str
    language: str
    key: str
    others: tuple[Tensor, ...] = ()
    file: EncodedCrop | None = None


class Drop(NamedTuple):
    """Why there is no sample, by a name of records.DROP_REASONS. language: of the caption that was drawn, where one was."""

    reason: str
    language: str | None = None


@dataclass(frozen=True)
class SampleMaker:
    """Draws and decodes.

    `probabilities`: q per language of the balance (None: every pair is used); `languages`: only captions of these (None: all); `without`: none of these;
    `language_keep`: the chance of each language's pairs on top (None: 1). `gpu_decode`: plain JPEGs stay files for the GPU.

    Every choice is a keyed hash of (seed, pass, pair key).
    """

    preprocess: ImagePreprocess
    seed: int
    probabilities: Mapping[str, FloatArray] | None = None
    languages: frozenset[str] | None = None
    without: frozenset[str] = frozenset()
    views: Views = field(default_factory=Views)
    language_keep: Mapping[str, float] | None = None
    gpu_decode: bool = False

    def takes(self, language: str) -> bool:
        """Whether captions of this language are used."""
        return (self.languages is None or language in self.languages) and language not in self.without

    def draw(self, record: Record, epoch: int) -> PackedCaption | Drop:
        """The caption of the record in this pass, or why there is none."""
        captions = record.captions
        if not captions:
            return Drop(record.drops[-1])
        if self.languages is not None or self.without:
            captions = tuple(caption for caption in captions if self.takes(caption.language))
            if not captions:
                return Drop("other_language")
        caption = captions[drawn_caption(record.key, len(captions), self.seed, epoch)]
        if self.probabilities is not None and not accept_caption(record.key, caption, self.probabilities, self.seed, epoch):
            return Drop("balanced_away", caption.language)
        if self.language_keep is not None and not self._keeps(caption.language, record.key, epoch):
            return Drop("language_share", caption.language)
        return caption

    def _keeps(self, language: str, key: str, epoch: int) -> bool:
        assert self.language_keep is not None
        return storage.keyed_uniform(self.seed, "language", epoch, key) < self.language_keep.get(language, 1.0)

    def train(self, record: Record, epoch: int, reader: ShardReader, laps: Laps) -> Sample | Drop:
        """A sample with a random crop, or the reason why there is none in this pass. Ends the laps read, decode and transform."""
        caption = self.draw(record, epoch)
        laps("read")
        if isinstance(caption, Drop):
            return caption
        assert record.image is not None  # a record with captions has one
        seed = storage.keyed_hash(self.seed, "crop", epoch, record.key)
        try:
            image = record.image
            if self.gpu_decode and isinstance(image, bytes) and (file := left_to_gpu(image, self.preprocess, seed)):
                laps("decode")
                black = tuple(BLACK.expand(3, size, size) for size in (self.preprocess.image_size, *self.views.sizes))
                return Sample(black[0], caption.text, caption.language, record.key, black[1:], file)
            if isinstance(image, bytes):
                image = self.views.decoder(self.preprocess).decode(image)
                reader.keep_decoded(record, image)
            laps("decode")
            pixels, others = self.preprocess.train(image, seed), self.views.crops(self.preprocess, image, seed)
        except BrokenImage:
            return Drop("broken_image")
        except HugeImage:
            return Drop("huge_image")
        laps("transform")
        return Sample(pixels, caption.text, caption.language, record.key, others)

    def evaluate(self, record: Record) -> Sample | Drop:
        """A sample with the evaluation transform and the caption of pass 0, not balanced away, or the reason why there is none."""
        caption = replace(self, probabilities=None, language_keep=None).draw(record, 0)
        if isinstance(caption, Drop):
            return caption
        assert isinstance(record.image, bytes)
        try:
            pixels, others = self.preprocess.evaluate(record.image), self.views.centres(self.preprocess, record.image)
        except BrokenImage:
            return Drop("broken_image")
        except HugeImage:
            return Drop("huge_image")
        return Sample(pixels, caption.text, caption.language, record.key, others)


def drop_reasons(record: Record, sample: Sample | Drop) -> list[str]:
    """Reasons to count for one visit of a record. One that has no captions has said why itself."""
    return [*record.drops, sample.reason] if isinstance(sample, Drop) and record.captions else list(record.drops)


def nothing_usable(reasons: Counter[str], path: object) -> ValueError:
    """The error of a data set in which nothing survives."""
    what = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
    return ValueError(f"{path}: no pair of the shards can be used ({what}); look at the shards, the languages chosen and the balance")


def collate(samples: Sequence[Sample], tokenizer: Tokenizer, views: Views, laps: Laps) -> PairBatch:
    """The batch of B samples; a worker puts the images into shared memory at once. Ends the laps tokenize and collate."""
    texts = [sample.text for sample in samples]
    tokens = tokenizer(texts)
    laps("tokenize")
    images = default_collate([sample.image for sample in samples])
    made = views.batch(images, [sample.others for sample in samples], tokens, texts)
    laps("collate")
    return PairBatch(images, tokens, [sample.language for sample in samples], [sample.key for sample in samples], made)
