"""`mc2 predict`: which of the given texts fits each image file best; and `mc2 test --watch`. Shapes: N images, M texts."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import rich
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.table import Table
from torch import Tensor

from mc2.benchmarks.callbacks import MultilingualBenchmark
from mc2.training.checkpoints import checkpoint_folder, step_of
from mc2.training.module import Ranking
from mc2.training.watch import new_checkpoints, results_folder


def read_images(paths: Sequence[str], preprocess: Any) -> Tensor:
    """uint8 (N, 3, H, W). Errors: ValueError that names a file which is missing or no image."""
    images = []
    for path in paths:
        try:
            images.append(preprocess.evaluate(Path(path).read_bytes()))
        except (OSError, ValueError) as error:
            raise ValueError(f"--images: found no readable image at {path} ({error}); need a JPEG, PNG or WebP file") from error
    return torch.stack(images)


def ranking_table(image: str, texts: Sequence[str], probability_M: Tensor) -> Table:
    """The texts of one image, best first."""
    table = Table(title=image, title_justify="left")
    table.add_column("probability", justify="right")
    table.add_column("text")
    for index in probability_M.argsort(descending=True).tolist():
        table.add_row(f"{probability_M[index]:.1%}", texts[index])
    return table


class OneBatch:
    """A loader with one batch. (Lightning takes a list for several loaders.)"""

    def __init__(self, batch: Ranking) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Ranking]:
        return iter((self._batch,))


class RankingTrainer(Trainer):
    """Lightning's Trainer, whose `predict` takes image files and texts from the command line, and whose `test` may wait for a run's checkpoints."""

    def test(  # type: ignore[override]  # Lightning's, and the arguments of --watch
        self,
        model: LightningModule | None = None,
        dataloaders: Any = None,
        ckpt_path: str | None = None,
        verbose: bool = True,
        datamodule: LightningDataModule | None = None,
        weights_only: bool | None = None,
        watch: Path | None = None,
        poll_seconds: float = 30.0,
    ) -> Any:
        """Run the benchmarks.

        Args:
            model: the module that the checkpoint belongs to.
            dataloaders: none; the data module has them.
            ckpt_path: the weights: a path, or "last".
            verbose: print Lightning's own table too.
            datamodule: has the tokenizer and the preprocessing of the run.
            weights_only: always true for this command line; here because `fit` has it in its saved config.
            watch: folder of a run: evaluate each of its checkpoints, those that are there and those to come, until that of trainer.max_steps.
            poll_seconds: how long to wait before the next look for a checkpoint.
        """
        if watch is None:
            return super().test(model, dataloaders, ckpt_path, verbose, datamodule, weights_only)

        def evaluate(held: Path) -> None:
            for callback in self.callbacks:  # type: ignore[attr-defined]  # set by a connector, declared nowhere
                if isinstance(callback, MultilingualBenchmark):
                    callback.step = step_of(held)
                    callback.results = str(results_folder(watch, callback.step) / (callback.student or ""))
            rank_zero_only(print)(f"watch: {held.name}", flush=True)
            super(RankingTrainer, self).test(model, dataloaders, str(held), False, datamodule, weights_only)

        def follow() -> None:
            self.strategy.connect(model or self.lightning_module)
            self.strategy.setup_environment()  # the ranks meet now: they wait for the first checkpoint together
            rank_zero_only(print)(f"watch: looks for checkpoints in {checkpoint_folder(watch)} every {poll_seconds:g} s", flush=True)
            found = new_checkpoints(watch, poll_seconds, self.max_steps, self.global_rank, self.strategy.broadcast)
            with closing(found):
                for held in found:
                    evaluate(held)

        launcher = self.strategy.launcher
        if launcher is None:
            follow()
            return []
        try:
            launcher.launch(follow, trainer=self)
        except BaseException:
            launcher.kill(signal.SIGTERM)  # between two evaluations Lightning does not
            raise
        return []

    def predict(  # type: ignore[override]  # another command than Lightning's: image files and texts in, a table out
        self,
        model: LightningModule,
        datamodule: LightningDataModule,
        images: list[str],
        texts: list[str],
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> Tensor:
        """Rank the texts for each image file.

        Args:
            model: the module that the checkpoint belongs to.
            datamodule: has the tokenizer and the preprocessing of the run.
            images: image files.
            texts: texts in any language, at least one.
            ckpt_path: the weights: a path, or "last".
            weights_only: always true for this command line; here because `fit` has it in its saved config.
        """
        if not images or not texts:
            raise ValueError(
                f"predict: found {len(images)} images and {len(texts)} texts, need at least one of each: --images '[a.jpg]' --texts '[\"a fox\"]'"
            )
        data = cast(Any, datamodule)
        query = Ranking(read_images(images, data.preprocess), data.tokenizer(texts))
        batches = super().predict(model, OneBatch(query), ckpt_path=ckpt_path, weights_only=weights_only)
        probability_NM = cast(list[Tensor], batches)[0]
        for image, probability_M in zip(images, probability_NM, strict=True):
            rich.print(ranking_table(image, texts, probability_M))
        return probability_NM
