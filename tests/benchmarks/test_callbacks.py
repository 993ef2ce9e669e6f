"""The callback in a real Trainer: when it runs, what it writes and logs, and what it must leave as it was."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mc2.benchmarks.callbacks import MultilingualBenchmark
from mc2.benchmarks.results import read_results
from mc2.benchmarks.tasks import PREDICTIONS_SCHEMA
from tests.benchmarks.toys import ToyData, ToyModule, toy_task, write_toy_task
from tests.processes import run_processes

pytestmark = [
    pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode"),  # meant: a frozen part
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
]


def trainer(folder: Path, *callbacks: Callback, logger: bool = False, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=3,
        max_epochs=-1,
        logger=TensorBoardLogger(folder, name="", version="") if logger else False,
        default_root_dir=folder,
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        num_sanity_val_steps=1,
        **settings,
    )


def fit(folder: Path, *callbacks: Callback, **settings: Any) -> ToyModule:
    torch.manual_seed(0)
    module = ToyModule()
    trainer(folder, *callbacks, **settings).fit(module, datamodule=ToyData())
    return module


def test_fit_evaluates_every_n_steps_and_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = MultilingualBenchmark([toy_task(tmp_path / "toy")], every_n_steps=2, batch_size=8, num_names=2)
    fit(tmp_path / "run", callback, logger=True, log_every_n_steps=1)
    assert sorted(path.name for path in (tmp_path / "run/results").iterdir()) == ["step=2", "step=3"]
    last = read_results(tmp_path / "run/results.parquet")
    assert last == read_results(tmp_path / "run/results/step=3/results.parquet")
    assert last != read_results(tmp_path / "run/results/step=2/results.parquet")
    predictions = pq.read_table(tmp_path / "run/predictions.parquet")
    assert predictions.schema == PREDICTIONS_SCHEMA
    assert predictions.num_rows == 2 * (23 + 23 + 17)
    assert "mean of unseen" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in events.Scalars("toy/classification/mean/top1")] == [2, 3]
    logged = {row.metric: row.value for row in last if row.language == "mean:seen"}
    assert events.Scalars("toy/retrieval/mean-seen/t2i_r5")[-1].value == pytest.approx(logged["t2i_r5"], abs=1e-6)
    tags = events.Tags()["scalars"]
    assert "toy/classification/ja/top1" in tags
    assert "toy/classification/ja/top5" not in tags
    assert {image.step for image in events.Images("benchmarks/languages")} == {2, 3}
    page = (tmp_path / "run/benchmarks.html").read_text(encoding="utf-8")
    assert page.count("<details") == 3
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)


def test_without_an_interval_only_the_end_of_fit_is_evaluated(tmp_path: Path) -> None:
    fit(tmp_path / "run", MultilingualBenchmark([toy_task(tmp_path / "toy")]))
    assert [path.name for path in (tmp_path / "run/results").iterdir()] == ["step=3"]


def test_a_run_that_is_stopped_early_is_not_evaluated(tmp_path: Path) -> None:
    """The signal that stops a run leaves seconds, not minutes; `mc2 test` evaluates the checkpoint."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
            trainer.should_stop = True

    fit(tmp_path / "run", MultilingualBenchmark([toy_task(tmp_path / "toy")]), Stop())
    assert not (tmp_path / "run/results.csv").exists()


def test_training_is_not_touched(tmp_path: Path) -> None:
    """Same weights and random state after training as without the callback; frozen parts stay in eval mode, the rest in training mode."""
    modes: list[dict[str, bool]] = []

    class Modes(Callback):
        def on_before_zero_grad(self, _: Trainer, pl_module: LightningModule, *__: object) -> None:
            modes.append({name: part.training for name, part in pl_module.named_modules()})

    plain = fit(tmp_path / "plain", Modes())
    state = torch.get_rng_state()
    watched = fit(tmp_path / "watched", MultilingualBenchmark([toy_task(tmp_path / "toy")], every_n_steps=1), Modes())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), watched.state_dict().values(), strict=True))
    assert modes[:3] == modes[3:]
    assert (modes[5]["dropout"], modes[5]["frozen"]) == (True, False)


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_a_checkpoint_is_evaluated_outside_fit(tmp_path: Path, stage: str) -> None:
    callback = MultilingualBenchmark([toy_task(tmp_path / "toy")], results=str(tmp_path / "elsewhere"))
    module = ToyModule()
    run = trainer(tmp_path / "run", callback)
    getattr(run, stage)(module, datamodule=ToyData(), verbose=False)
    rows = read_results(tmp_path / "elsewhere/results.csv")
    top1 = next(row.value for row in rows if (row.language, row.metric) == ("mean", "top1"))
    assert float(run.callback_metrics["toy/classification/mean/top1"]) == pytest.approx(top1, abs=1e-6)
    assert not (tmp_path / "elsewhere/results").exists()


def test_a_checkpoint_can_follow_a_mean(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", monitor="toy/classification/mean/top1", mode="max", every_n_train_steps=1, save_top_k=1)
    fit(tmp_path / "run", MultilingualBenchmark([toy_task(tmp_path / "toy")], every_n_steps=1), best)
    assert best.best_model_score is not None
    scores = [read_results(path / "results.csv") for path in (tmp_path / "run/results").iterdir()]
    assert float(best.best_model_score) == pytest.approx(max(rows[0].value for rows in scores), abs=1e-6)
    assert (scores[0][0].language, scores[0][0].metric) == ("mean", "top1")


def test_the_file_has_the_agreed_columns(tmp_path: Path) -> None:
    fit(tmp_path / "run", MultilingualBenchmark([toy_task(tmp_path / "toy")], languages=["de"]))
    with open(tmp_path / "run/results.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["task", "protocol", "language", "metric", "value", "num_samples", "num_candidates", "low", "high"]
    assert {row["protocol"] for row in rows} == {"classification-1-of-3-languages", "retrieval-1-of-3-languages"}


def fit_on_a_rank(folder: Path, strategy: str) -> tuple[float, dict[str, int]]:
    callback = MultilingualBenchmark([toy_task_of(folder)], every_n_steps=2, batch_size=4)
    torch.manual_seed(0)
    module = ToyModule()
    module.dropout.p = 0.0
    run = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_steps=3,
        max_epochs=-1,
        logger=False,
        default_root_dir=folder / "run",
        callbacks=[callback],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    run.fit(module, datamodule=ToyData())
    return float(run.callback_metrics["toy/classification/mean/top1"]), module.num_forwards


def toy_task_of(folder: Path) -> Any:
    from mc2.benchmarks.tasks import TaskFolder

    return TaskFolder(folder / "toy")


def test_two_ranks_evaluate_together_and_one_writes(tmp_path: Path) -> None:
    write_toy_task(tmp_path / "toy")
    (first, forwards), (second, others) = run_processes(fit_on_a_rank, [(tmp_path, "ddp")] * 2, join=False)
    assert first == second
    assert forwards == others
    files = ["outcomes.parquet", "results.csv", "results.md", "results.parquet"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["benchmarks.html", files[0], "results", *files[1:]]
    for step in (2, 3):
        assert sorted(path.name for path in (tmp_path / f"run/results/step={step}").iterdir()) == files


def test_settings_are_checked_at_construction(tmp_path: Path) -> None:
    task = toy_task(tmp_path / "toy")
    for settings, message in (
        ({"tasks": []}, "found tasks \\[\\]; need at least one"),
        ({"tasks": [task, task]}, "with different names"),
        ({"every_n_steps": 0}, "found every_n_steps 0, need 1 or more"),
        ({"batch_size": 0}, "found batch_size 0"),
        ({"num_names": -1}, "found num_names -1"),
        ({"num_images": 1}, "a part of 1 images has none of language 'ja'; raise num_images"),
        ({"reference": "H/15"}, "found neither a folder of results nor a model at 'H/15'; need one of 'H/14 worldwide 29B'"),
        ({"languages": ["de", "fr"]}, "no task has the language 'fr'"),
        ({"languages": []}, "has none of the languages"),
    ):
        with pytest.raises(ValueError, match=message):
            MultilingualBenchmark(**{"tasks": [task], **settings})  # type: ignore[arg-type]


class Mute(ToyModule):
    encode_text = None  # type: ignore[assignment]


class NoBatches(ToyData):
    def test_dataloader(self) -> Any:
        return []


def test_a_module_or_data_module_that_cannot_be_evaluated_is_refused_before_training(tmp_path: Path) -> None:
    callback = MultilingualBenchmark([toy_task(tmp_path / "toy")])
    with pytest.raises(ValueError, match="found data module NoneType; need one with tokenizer and preprocess"):
        trainer(tmp_path, callback).fit(ToyModule(), ToyData().train_dataloader(), ToyData().val_dataloader())
    with pytest.raises(ValueError, match="Mute has no encode_image and encode_text"):
        trainer(tmp_path, callback).fit(Mute(), datamodule=ToyData())


@pytest.mark.filterwarnings("ignore:Total length of")
def test_an_evaluation_without_a_batch_is_no_success(tmp_path: Path) -> None:
    callback = MultilingualBenchmark([toy_task(tmp_path / "toy")])
    with pytest.raises(ValueError, match="nothing was evaluated, because the data module gave test no batch"):
        trainer(tmp_path, callback).test(ToyModule(), datamodule=NoBatches())
