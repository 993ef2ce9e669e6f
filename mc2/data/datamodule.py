"""The Lightning data module over folders of training shards: what an experiment's YAML says under `data`."""

from __future__ import annotations

from collections import Counter

from lightning.pytorch import LightningDataModule, Trainer

from mc2.data.loader import CPU, Loader, Tally
from mc2.data.shard_data import FixedBatches, ShardData


class ShardDataModule(ShardData, LightningDataModule):
    """PairBatch after PairBatch from training shards, in an order that a seed fixes and a checkpoint resumes. Settings: see `mc2.data.shard_data.ShardData` and docs/data.md."""

    _train: Loader | None = None

    @property
    def tally(self) -> Tally:
        """What happened to the records of the training batches of this rank since the fit began."""
        return self._train.tally if self._train else Tally()

    @property
    def drops(self) -> Counter[str]:
        """Number of drops on this rank since the fit began, by names of records.DROP_REASONS."""
        return self.val_drops + self.tally.drops

    @property
    def passes(self) -> dict[str, float]:
        """How often this rank went through each data set, checkpoints before included."""
        return self._train.passes() if self._train else {}

    def setup(self, stage: str) -> None:
        """Errors: ValueError for shards that are not as they should be, and for `overfit_batches`."""
        if stage == "fit":
            if self.trainer is not None:
                self._begin(self.trainer)
            self.open()

    def _begin(self, trainer: Trainer) -> None:
        again: float = trainer.overfit_batches  # type: ignore[attr-defined]  # set by the Trainer, declared nowhere
        if again:
            raise ValueError(
                f"trainer.overfit_batches: found {again}, need 0 (the data go on where a virtual epoch ends: the next one would have other "
                "pairs); to see the same pairs in every pass, give data.shards a folder with few of them"
            )
        if not trainer.global_step:  # a run that begins: only a checkpoint, read behind this, says where to go on
            self._close()
            self._train = None

    def train_dataloader(self) -> Loader:
        """The one loader of the fit: Lightning saves and restores its state."""
        if self._train is None:
            rank, world_size = self._ranks()
            if self.trainer and rank == 0:
                print("\n".join(f"data: {line}" for line in self.summary(world_size)))
            self._train = self.loader(rank, world_size, self.trainer.strategy.root_device if self.trainer else CPU)
        return self._train

    def val_dataloader(self) -> FixedBatches:
        """This rank's part of the fixed validation set."""
        return self.validation(*self._ranks())

    def test_dataloader(self) -> FixedBatches:
        """The validation set; the benchmarks of `mc2 test` bring their own images."""
        return self.val_dataloader()

    def teardown(self, stage: str) -> None:
        if stage == "fit":
            self._close()

    def on_exception(self, exception: BaseException) -> None:  # noqa: ARG002
        self._close()  # without a teardown

    def _close(self) -> None:
        if self._train is not None:
            self._train.close()

    def _ranks(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
