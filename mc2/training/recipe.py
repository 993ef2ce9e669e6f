"""Batch and steps of the published runs from one number: how many times as many pairs a run sees as CLIP's English schedule (RECIPE 2.1).

English is 44 % of a worldwide pool. 2.3 times the pairs in as many steps, so with 2.3 times the batch, leave the number of English pairs what it was.
"""

from __future__ import annotations

from dataclasses import dataclass

ENGLISH_BATCH = 32_768  # pairs a step, all ranks
ENGLISH_EPOCH = 400_000_000  # pairs that one epoch of the schedule counts, whatever the size of the pool
NUM_EPOCHS = 32
ENGLISH_SHARE = 0.44  # of the captions of the worldwide pool
WORLDWIDE_SCALE = 2.3


@dataclass(frozen=True)
class Schedule:
    """A run of `scale` times the English pairs on `num_gpus`. The batch is rounded down to equal parts of whole pairs: 196 on each of 384 GPUs, 75,264 in all,
    where the paper states 75,366 = 2.3 x 32,768.
    """

    scale: float
    num_gpus: int

    @property
    def pairs_per_gpu(self) -> int:
        return int(self.scale * ENGLISH_BATCH) // self.num_gpus

    @property
    def batch(self) -> int:
        return self.pairs_per_gpu * self.num_gpus

    @property
    def steps_per_epoch(self) -> int:
        return round(self.scale * ENGLISH_EPOCH) // self.batch

    @property
    def num_steps(self) -> int:
        return self.steps_per_epoch * NUM_EPOCHS

    @property
    def seen_pairs(self) -> int:
        return self.num_steps * self.batch

    def english_pairs(self, share: float = ENGLISH_SHARE) -> float:
        """English pairs seen, of a pool with this share of them."""
        return share * self.seen_pairs
