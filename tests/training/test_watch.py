"""`mc2 test --watch`: every checkpoint once, whatever the run does to it meanwhile; and a model folder evaluated without a run."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from mc2.benchmarks.results import read_results
from mc2.benchmarks.tasks import TaskFolder
from mc2.cli import main
from mc2.interchange.model_directory import load, save
from mc2.training.checkpoints import checkpoint_folder, remove
from mc2.training.watch import Choice, choose, hold, new_checkpoints, results_folder
from tests.benchmarks.toys import write_toy_task
from tests.interchange.tiny import tiny_parts
from tests.training.tiny import fit_config

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def checkpoint(run: Path, step: int, parts: bool = False) -> Path:
    path = checkpoint_folder(run) / f"step={step}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if parts:
        path.mkdir()
        (path / "__0_0.distcp").write_text(str(step))
    else:
        path.write_text(str(step))
    return path


def test_each_checkpoint_comes_once_and_pruning_does_not_hurt(tmp_path: Path) -> None:
    for step in (2, 10):
        checkpoint(tmp_path, step, parts=step == 10)
    seen = []

    def train(_: float) -> None:
        """What the job does while the watcher sleeps."""
        if 20 not in seen:
            checkpoint(tmp_path, 20)

    for held in new_checkpoints(tmp_path, 1.0, last_step=20, sleep=train):
        step = int(held.stem.removeprefix("step="))
        remove(checkpoint_folder(tmp_path) / held.name)  # pruned while it is evaluated
        assert (held / "__0_0.distcp" if held.is_dir() else held).read_text() == str(step)
        seen.append(step)
    assert seen == [2, 10, 20]
    assert not (tmp_path / "watched/.held").exists()
    checkpoint(tmp_path, 2)
    assert list(new_checkpoints(tmp_path, 1.0, last_step=20, sleep=train)) == []  # started again: all is done


def test_a_watcher_that_is_stopped_leaves_its_checkpoint_to_the_next(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2)
    watcher = new_checkpoints(tmp_path, 1.0, last_step=2)
    next(watcher)
    watcher.close()
    assert not (tmp_path / "watched/.held").exists()
    assert next(new_checkpoints(tmp_path, 1.0, last_step=2)).name == "step=2.ckpt"


def test_a_checkpoint_that_is_gone_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(tmp_path, 2, parts=True)
    checkpoint(tmp_path, 4)
    copytree = shutil.copytree

    def pruned(source: Path, *arguments: Any, **settings: Any) -> Any:
        remove(Path(source))
        return copytree(source, *arguments, **settings)

    monkeypatch.setattr(shutil, "copytree", pruned)
    passed_over: set[int] = set()
    choice = choose(tmp_path, 4, passed_over)
    assert choice.held is not None
    assert (choice.held.name, choice.ends, passed_over) == ("step=4.ckpt", False, {2})
    passed_over.add(4)
    assert choose(tmp_path, 4, passed_over) == Choice(None, ends=True)  # the last one is gone: nothing is to come
    assert choose(tmp_path, -1, passed_over) == Choice(None, ends=False)
    assert hold(checkpoint_folder(tmp_path) / "step=6.ckpt", tmp_path / "held") is None


def test_the_commands_on_checkpoints_and_on_a_model_folder(tmp_path: Path) -> None:
    """One run of two checkpoints, watched; `mc2 test` of one of them says the same under its own step; so does its model folder, without the run."""
    run, task = tmp_path / "run", write_toy_task(tmp_path / "toy")
    config = fit_config(run, max_steps=4)
    config["checkpoints"] = {"every_n_steps": 2}
    config["data"] = {"class_path": "tests.training.tiny.TinyData"}
    benchmark = {"tasks": [{"class_path": "mc2.benchmarks.tasks.TaskFolder", "init_args": {"folder": str(task)}}], "num_confusions": 0}
    config["trainer"]["callbacks"] = [{"class_path": "mc2.benchmarks.callbacks.MultilingualBenchmark", "init_args": benchmark}]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "config.yaml")]) == 0
    assert main(["test", "--config", str(run / "config.yaml"), "--watch", str(run), "--poll_seconds", "0.1"]) == 0
    found = {step: read_results(results_folder(run, step) / "results.parquet") for step in (2, 4)}
    assert found[2] != found[4] == read_results(run / "results/step=4/results.parquet")
    assert main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", str(checkpoint_folder(run) / "step=2.ckpt")]) == 0
    assert read_results(run / "results.parquet") == found[2]


def test_a_model_folder_is_evaluated_as_it_is(tmp_path: Path) -> None:
    """The numbers of `mc2.load` on the same images and texts; with the cache no text is encoded twice."""
    save(tmp_path / "model", *tiny_parts(tmp_path / "tokenizer"))
    clip = load(tmp_path / "model")
    task = TaskFolder(write_toy_task(tmp_path / "toy"))
    folder = {"init_args": {"folder": str(tmp_path / "model")}}
    benchmark = {
        "tasks": [{"class_path": "mc2.benchmarks.tasks.TaskFolder", "init_args": {"folder": str(tmp_path / "toy")}}],
        "cache": str(tmp_path / "cache"),
    }
    config = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": str(tmp_path / "run"),
            "callbacks": [{"class_path": "mc2.benchmarks.callbacks.MultilingualBenchmark", "init_args": benchmark}],
        },
        "model": {"class_path": "mc2.training.released.ReleasedModel", **folder},
        "data": {"class_path": "mc2.training.released.ReleasedData", **folder},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["test", "--config", str(tmp_path / "config.yaml")]) == 0
    first = read_results(tmp_path / "run/results.parquet")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(files) == 3
    assert main(["test", "--config", str(tmp_path / "config.yaml")]) == 0
    assert read_results(tmp_path / "run/results.parquet") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == files
    image = clip.encode_image([Image.open(io.BytesIO(file)) for file in task.image_set.read(0, 23)])
    scores = task.score("de", image, task.condense("de", clip.encode_text(task.texts("de"))))
    rows = {(row.language, row.protocol, row.metric): row.value for row in first}
    assert {score.metric: rows["de", score.protocol, score.metric] for score in scores} == {
        s.metric: pytest.approx(s.value) for s in scores
    }
