"""Benchmarks in a Lightning run: every n steps and at the end of `fit`, and in `validate` and `test`.

trainer:
  callbacks:
    - class_path: mc2.benchmarks.callbacks.MultilingualBenchmark
      init_args:
        tasks:
          - class_path: mc2.benchmarks.tasks.TaskFolder
            init_args: {folder: runs/quickstart/benchmarks/emoji}
        every_n_steps: 200
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import pyarrow as pa
import rich
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from mc2.benchmarks.encode import Encoder, ManyStudents, Preprocessing
from mc2.benchmarks.evaluate import Engine, Evaluation, common_languages
from mc2.benchmarks.figures import bar_columns, heat_map, language_bars
from mc2.benchmarks.means import collection_rows
from mc2.benchmarks.page import PAGE_NAME, write_page
from mc2.benchmarks.reference import read_reference
from mc2.benchmarks.result_files import step_folder, write_files
from mc2.benchmarks.results import Result
from mc2.benchmarks.table import HEADLINES, results_table
from mc2.benchmarks.tasks import Task
from mc2.benchmarks.text_cache import CacheableEncoder, CacheableTokenizer, TextCache, model_fingerprint

LANGUAGES_IN_TERMINAL = 20


class MultilingualBenchmark(Callback):
    """Scores every task in every language, each image and text encoded once, all ranks at work.

    Writes results.{parquet,csv,md}, outcomes.parquet (see `result_files`) and benchmarks.html to a folder; in `fit` the results of each evaluated step to
    `results/step=N` below it, and those of the last step to the folder itself. Logs `<task>/<protocol>/<language>/<metric>` to every logger (all metrics of the means, the headline metric of each language), a heat map
    and bars of each task to TensorBoard, makes the means available to `ModelCheckpoint(monitor=...)`, and prints a table at the end. The module needs
    `encode_image` and `encode_text`, the data module `tokenizer` and `preprocess`. Weights, modes and random states stay as they were.
    """

    def __init__(
        self,
        tasks: list[Task],
        every_n_steps: int | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        languages: list[str] | None = None,
        num_images: int | None = None,
        results: str | None = None,
        num_names: int = 0,
        num_confusions: int = 12,
        cache: str | None = None,
        reference: str | None = None,
        student: str | None = None,
    ) -> None:
        """
        Args:
            tasks: what to score; names must differ.
            every_n_steps: optimizer steps between two evaluations in `fit`; null: after its last step only.
            batch_size: images of one forward on one rank; a forward of texts is as large in tokens as 16 for each image.
            num_workers: processes of each rank that decode images beside the model; 0: none.
            languages: score only these; the protocol's name then says how many of the task's languages it has.
            num_images: score only so many images of each task, a fixed random part; the protocol's name then says so.
            results: the folder to write; null: the run's log folder.
            num_names: answers to keep for each image in `predictions.parquet` beside the results; 0: no such file.
            num_confusions: wrong answers that benchmarks.html shows in each language, the most certain first; 0: none.
            cache: folder where class embeddings are kept on the disk by weights and texts, for the next evaluation of the same weights; null: nowhere.
            reference: what figures show beside the results: the name of a model of the paper ("H/14 worldwide 29B") or a folder of results.
            student: score this one of `model.students` instead of the module's own towers; everything is then named `<student>/...` and
                lies in `<log folder>/<student>`.
        """
        if not tasks or len({task.name for task in tasks}) < len(tasks):
            raise ValueError(f"benchmarks: found tasks {[task.name for task in tasks]}; need at least one, with different names")
        counts = {
            "every_n_steps": (every_n_steps, 1),
            "batch_size": (batch_size, 1),
            "num_workers": (num_workers, 0),
            "num_images": (num_images, 1),
            "num_names": (num_names, 0),
            "num_confusions": (num_confusions, 0),
        }
        for name, (value, least) in counts.items():
            if value is not None and value < least:
                raise ValueError(f"benchmarks: found {name} {value}, need {least} or more")
        if unknown := sorted(set(languages or ()) - {language for task in tasks for language in task.languages}):
            raise ValueError(f"benchmarks: no task has the language {unknown[0]!r}; leave it out")
        self.tasks = tasks if num_images is None else [task.sample(num_images) for task in tasks]
        self.languages = [task.languages if languages is None else common_languages(task, languages) for task in tasks]
        self.every_n_steps, self.batch_size, self.num_workers, self.cache = every_n_steps, batch_size, num_workers, cache
        self.results, self.num_names, self.num_confusions = results, num_names, num_confusions
        self.reference_name, self.reference = reference or "", read_reference(reference) if reference else []
        self.step: int | None = None  # of the checkpoint that is evaluated; None: the trainer's own
        self.student = student
        self._evaluated, self._evaluated_step = False, 0
        self.seconds = 0.0  # spent so far

    def setup(self, trainer: Trainer, pl_module: LightningModule, *_: object, **__: object) -> None:
        """Errors: ValueError for a module or a data module that cannot be evaluated, before anything is trained."""
        if trainer.state.fn != TrainerFn.PREDICTING:  # nothing is evaluated there
            encoder, data = encoder_and_data(trainer, pl_module, self.student)
            if self.cache is not None:
                check_cacheable(encoder, data)
        self._evaluated = False

    def teardown(self, trainer: Trainer, *_: object, **__: object) -> None:
        """Errors: ValueError after a `validate` or `test` without a batch, for which Lightning calls no hook (silence is no success)."""
        if trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING) and not self._evaluated:
            raise ValueError(
                f"benchmarks: nothing was evaluated, because the data module gave {trainer.state.fn.value} no batch; give it one"
            )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object, **__: object) -> None:
        step = trainer.global_step
        if self.every_n_steps and step % self.every_n_steps == 0 and step > self._evaluated_step:  # once, not for every accumulated batch
            results = self.evaluate(trainer, pl_module)
            pl_module.log_dict(self._scalars(results, means_only=True), logger=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A step just evaluated is only shown; a run that a signal or a time limit stopped early has no time left (use `mc2 test`)."""
        if trainer.should_stop and trainer.global_step < trainer.max_steps:
            return
        results = self._results if trainer.global_step == self._evaluated_step else self.evaluate(trainer, pl_module)
        self._show(trainer, results)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:  # the validation inside `fit` has an interval of its own
            self._evaluate_and_show(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluate_and_show(trainer, pl_module)

    def _evaluate_and_show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results = self.evaluate(trainer, pl_module)
        pl_module.log_dict(self._scalars(results, means_only=True), logger=False, sync_dist=True)
        self._show(trainer, results)

    def _show(self, trainer: Trainer, results: Sequence[Result]) -> None:
        if trainer.is_global_zero:
            rich.print(results_table(results, LANGUAGES_IN_TERMINAL, compact=True, groups=False).to_rich())
            print(f"All languages, figures and the worst confusions: {self._folder / PAGE_NAME}")

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> list[Result]:
        """Score all tasks, write and log. Called on all ranks; returns the same on each."""
        start = perf_counter()
        encoder, data = encoder_and_data(trainer, pl_module, self.student)
        step = trainer.global_step if self.step is None else self.step
        with evaluation_mode(pl_module), isolate_rng(), torch.no_grad(), trainer.precision_plugin.forward_context():
            cache = None if self.cache is None else TextCache(Path(self.cache), model_fingerprint(*check_cacheable(encoder, data)))
            engine = Engine(encoder, data, pl_module.device, self.batch_size, self.num_workers, cache=cache)
            if is_last(trainer):
                engine.num_names, engine.num_confusions = self.num_names, self.num_confusions
            evaluations = list(engine.evaluate(self.tasks, self.languages))
        results = [row for evaluation in evaluations for row in evaluation.results]
        results += collection_rows(results, {task.name: evaluation.main for task, evaluation in zip(self.tasks, evaluations, strict=True)})
        folder = Path(trainer.log_dir or trainer.default_root_dir) / (self.student or "")  # log_dir is collective: read on all ranks
        self._folder = Path(self.results) if self.results else folder
        if trainer.is_global_zero:
            self._write(trainer, results, evaluations, step)
        for logger in trainer.loggers:
            logger.log_metrics(self._scalars(results), step=step)
        self._evaluated, self._evaluated_step, self._results = True, trainer.global_step, results
        self.seconds += perf_counter() - start
        return results

    def _scalars(self, results: Iterable[Result], means_only: bool = False) -> dict[str, float]:
        return {self._prefix + name: value for name, value in scalars(results, means_only).items()}

    @property
    def _prefix(self) -> str:
        return f"{self.student}/" if self.student else ""

    def _write(self, trainer: Trainer, results: list[Result], evaluations: list[Evaluation], step: int) -> None:
        kept = [row for evaluation in evaluations for row in evaluation.kept]
        if is_last(trainer):
            predictions = pa.concat_tables([evaluation.predictions for evaluation in evaluations]) if self.num_names else None
            write_files(self._folder, results, kept, predictions)
            confusions = [evaluation.confusions for evaluation in evaluations]
            write_page(self._folder / PAGE_NAME, results, self.tasks, confusions, self.reference, self.reference_name)
        if trainer.state.fn == TrainerFn.FITTING:
            write_files(step_folder(self._folder / "results", step), results, kept)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure(f"{self._prefix}benchmarks/languages", heat_map(results), step)
                for column in bar_columns(results, self.reference):
                    figure = language_bars(results, column, self.reference, self.reference_name)
                    logger.experiment.add_figure(f"{self._prefix}benchmarks/{column[0]}/{column[2]}", figure, step)


def is_last(trainer: Trainer) -> bool:
    """Whether this evaluation is what a run ends with: answers and pictures of it are written."""
    return trainer.state.fn != TrainerFn.FITTING or trainer.global_step >= trainer.max_steps


def encoder_and_data(trainer: Trainer, pl_module: LightningModule, student: str | None = None) -> tuple[Encoder, Preprocessing]:
    """The module (or one of its students) and the data module, as a benchmark sees them. Errors: ValueError if they are not what it needs."""
    if student is not None:
        if not isinstance(pl_module, ManyStudents):
            raise ValueError(f"benchmarks: found student {student!r} for {type(pl_module).__name__}, which has none; leave it out")
        return pl_module.student(student)
    datamodule: object = trainer.datamodule  # type: ignore[attr-defined]  # set by the Trainer, declared nowhere
    if not isinstance(pl_module, Encoder):
        raise ValueError(f"benchmarks: {type(pl_module).__name__} has no encode_image and encode_text; need both on the module")
    if not isinstance(datamodule, Preprocessing):
        raise ValueError(
            f"benchmarks: found data module {type(datamodule).__name__}; need one with tokenizer and preprocess, such as ShardDataModule"
        )
    return pl_module, datamodule


def check_cacheable(encoder: Encoder, data: Preprocessing) -> tuple[CacheableEncoder, CacheableTokenizer]:
    """The module and the tokenizer, as the cache sees them. Errors: ValueError if they are not what it needs."""
    if not isinstance(encoder, CacheableEncoder) or not isinstance(data.tokenizer, CacheableTokenizer):
        raise ValueError(
            f"benchmarks.cache: {type(encoder).__name__} has no text_state or {type(data.tokenizer).__name__} no fingerprint; leave cache out"
        )
    return encoder, data.tokenizer


def scalars(results: Iterable[Result], means_only: bool = False) -> dict[str, float]:
    """`<task>/<protocol>/<language>/<metric>` -> value: all metrics of the means, the headline metrics of the languages."""
    return {
        "/".join(re.sub(r"[^\w.-]+", "-", part) for part in (row.task, row.protocol, row.language, row.metric)): row.value
        for row in results
        if row.is_mean or (row.metric in HEADLINES and not means_only)
    }


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """All submodules in eval mode; afterwards each in its own mode again (a frozen tower stays in eval mode)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
