"""`mc2 test --watch` in two real processes, and evaluations there that go wrong: both ranks do the same, to the end."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mc2.benchmarks import callbacks
from mc2.benchmarks.evaluate import Engine
from mc2.benchmarks.results import Result, read_results
from mc2.benchmarks.tasks import TaskFolder, write_task_folder
from mc2.cli import main
from mc2.training.checkpoints import checkpoint_folder, remove
from mc2.training.watch import HELD, WATCHED, results_folder
from tests.benchmarks.toys import CharacterTokenizer, ToyData, ToyModule, square, write_toy_task
from tests.processes import run_processes
from tests.training.tiny import fit_config

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")
STEPS = (2, 4, 6)


class Job(Callback):
    """What a training run does while it is watched: every evaluation of the watcher finds one checkpoint more, and the one before it pruned."""

    def __init__(self, source: str, run: str) -> None:
        self.source, self.run = checkpoint_folder(source), checkpoint_folder(run)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with open(self.run.parent / f"seen-{trainer.global_rank}", "a", encoding="utf-8") as file:
            weights = sum(float(getattr(p, "full_tensor", lambda p=p: p)().double().abs().sum()) for p in pl_module.parameters())
            file.write(f"{Path(str(trainer.ckpt_path)).name} {weights:.6f}\n")
        if trainer.is_global_zero:
            steps = [step for step in STEPS if f"step={step}.ckpt" == Path(str(trainer.ckpt_path)).name]
            remove(self.run / f"step={steps[0]}.ckpt")
            if steps[0] < STEPS[-1]:
                shutil.copytree(self.source / f"step={steps[0] + 2}.ckpt", self.run / f"step={steps[0] + 2}.ckpt")


def config(folder: Path, run: str) -> list[str]:
    """The file of a configuration of two sharded ranks, as arguments."""
    values = fit_config(folder / run, max_steps=STEPS[-1])
    values["checkpoints"] = {"every_n_steps": 2, "keep": 3}
    values["data"] = {"class_path": "tests.training.tiny.TinyData"}
    tasks = [{"class_path": "mc2.benchmarks.tasks.TaskFolder", "init_args": {"folder": str(folder / "toy")}}]
    strategy = {
        "class_path": "mc2.training.parallel.FSDP2Strategy",
        "init_args": {"save_distributed_checkpoint": True, "timeout_minutes": 0.5},
    }
    benchmark = {"class_path": "mc2.benchmarks.callbacks.MultilingualBenchmark", "init_args": {"tasks": tasks, "num_confusions": 0}}
    values["trainer"] |= {"devices": 2, "strategy": strategy, "callbacks": [benchmark], "logger": False}
    if run == "watched":
        job = {"class_path": "tests.training.test_watch_ranks.Job", "init_args": {"source": str(folder / "job"), "run": str(folder / run)}}
        values["trainer"]["callbacks"].append(job)
    path = folder / f"{run}.yaml"
    path.write_text(yaml.safe_dump(values))
    return ["--config", str(path)]


def values_of(results: list[Result]) -> list[tuple[str, str, float, int]]:
    return [(row.language, row.metric, row.value, row.num_samples) for row in results]


@torch.no_grad()
def evaluation(folder: Path, num_workers: int = 0) -> list[tuple[str, str, float, int]]:
    torch.manual_seed(0)
    task = TaskFolder(folder)
    engine = Engine(ToyModule().eval(), ToyData(), torch.device("cpu"), 5, num_workers)
    return values_of(next(engine.evaluate([task], [task.languages])).results)


def failure(folder: Path, num_workers: int = 0) -> str:
    try:
        evaluation(folder, num_workers)
    except ValueError as error:
        return str(error)
    return ""


class Strict(ToyData):
    """A tokenizer that refuses a text, which one rank alone meets."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = StrictTokenizer()


class StrictTokenizer(CharacterTokenizer):
    def __call__(self, texts: Sequence[str], /) -> Tensor:
        if "Zweites" in texts:
            raise ValueError("tokenizer: found 'Zweites'")
        return super().__call__(texts)


@torch.no_grad()
def failure_of_texts(folder: Path, refused: str) -> str:
    """A language that cannot be scored, or a text that is no text: a matter of one rank."""
    task = TaskFolder(folder / "toy")
    score = task.score

    def picky(language: str, *arguments: Any) -> Any:
        if language == refused:
            raise ValueError(f"toy: nothing to score in {language}")
        return score(language, *arguments)

    task.score = picky  # type: ignore[assignment,method-assign]
    engine = Engine(ToyModule().eval(), ToyData() if refused else Strict(), torch.device("cpu"), 5)
    try:
        next(engine.evaluate([task], [task.languages]))
    except ValueError as error:
        return str(error)
    return ""


def both_ranks(folder: Path) -> dict[str, Any]:
    """Everything that two processes are needed for: they cost seconds to start."""
    rank = int(os.environ["RANK"])
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # or it may have no workers that decode
    setattr(callbacks, "write_page", lambda *_: None)  # noqa: B010  # in this process only: pictures cost seconds
    found: dict[str, Any] = {"fit": main(["fit", *config(folder, "job")])}
    watch = ["test", *config(folder, "watched"), "--watch", str(folder / "watched"), "--poll_seconds", "0.05"]
    if rank == 0:
        shutil.copytree(checkpoint_folder(folder / "job") / "step=2.ckpt", checkpoint_folder(folder / "watched") / "step=2.ckpt")
    else:
        time.sleep(0.3)  # and the first one to look is another
    found["watch"], found["again"] = main(watch), main(watch)
    bad = {name: failure(folder / name) for name in ("first", "middle", "last")}
    found["bad"] = bad | {"workers": failure(folder / "middle", num_workers=1)}
    found["texts"] = [failure_of_texts(folder, refused) for refused in ("ja", "en", "")]
    found["good"] = evaluation(folder / "toy")
    if rank == 0:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    found["interrupt"] = main([*watch, "--trainer.max_steps", "-1"])
    return found


def write_broken(folder: Path, broken: int) -> None:
    """23 images, of which one does not decode."""
    images = [(f"image{i:03}", square(0, i)[: 60 if i == broken else None], 0) for i in range(23)]
    write_task_folder(folder, "toy", images, [("de", 0, "Ding")])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks")
    write_toy_task(folder / "toy")
    for name, broken in (("first", 0), ("middle", 11), ("last", 22)):
        write_broken(folder / name, broken)
    stale = folder / "watched" / WATCHED / HELD / "step=2.ckpt"  # of a watcher that was killed: not what this one evaluates
    stale.mkdir(parents=True)
    return folder, run_processes(both_ranks, [(folder,)] * 2, join=False)


def test_every_checkpoint_is_evaluated_once_and_by_all_ranks_together(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, found = ranks
    assert [(each["fit"], each["watch"], each["again"]) for each in found] == [(0, 0, 0)] * 2
    seen = [(folder / f"watched/seen-{rank}").read_text().splitlines() for rank in (0, 1)]
    assert [line.split()[0] for line in seen[0]] == [f"step={step}.ckpt" for step in STEPS]
    assert seen[0] == seen[1]
    assert len({line.split()[1] for line in seen[0]}) == len(STEPS)  # three different sets of weights
    last = read_results(results_folder(folder / "watched", 6) / "results.parquet")
    assert last == read_results(folder / "job/results.parquet")  # what the run said of itself after its last step
    assert not (folder / "watched" / WATCHED / HELD).exists()


def test_a_watcher_that_waits_ends_with_the_first_rank_that_is_interrupted(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    _, found = ranks
    assert [each["interrupt"] for each in found] == [130, 1]


@pytest.mark.parametrize("name", ["first", "middle", "last", "workers"])
def test_an_image_that_does_not_decode_is_the_same_line_on_all_ranks(ranks: tuple[Path, list[dict[str, Any]]], name: str) -> None:
    folder, found = ranks
    alone = failure(folder / ("middle" if name == "workers" else name))
    assert "toy: image 'image0" in alone
    assert [each["bad"][name] for each in found] == [alone] * 2


def test_what_one_rank_alone_meets_ends_all(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    _, found = ranks
    need = ["toy: nothing to score in ja", "toy: nothing to score in en", "tokenizer: found 'Zweites'"]
    assert [each["texts"] for each in found] == [need] * 2


def test_after_it_the_ranks_are_still_in_step_and_count_as_one_process_does(ranks: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, found = ranks
    alone = evaluation(folder / "toy")
    assert [each["good"] for each in found] == [alone] * 2
    assert {samples for language, metric, _, samples in alone if (language, metric) == ("ja", "top1")} == {17}
