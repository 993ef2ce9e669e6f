"""`mc2 sweep`: experiments x seeds in real processes, more seeds, again, changed, and with one that fails; and the settings it refuses."""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from mc2.benchmarks.results import Result
from mc2.benchmarks.tasks import write_task_folder
from mc2.cli import main as mc2
from mc2.sweep.commands import main
from mc2.sweep.settings import Column, read_sweep
from tests.data.shards import small_tokenizer, write_folder


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def base_config(folder: Path) -> dict[str, Any]:
    """Towers of width 16 on shards and a benchmark of two colours in two languages, both in `folder`."""
    images = [(colour, png(colour), number) for number, colour in enumerate(("red", "blue"))]
    names = [(code, number, name) for code, both in (("en", ("red", "blue")), ("de", ("rot", "blau"))) for number, name in enumerate(both)]
    write_task_folder(folder / "colours", "colours", images, names, {})
    task = {"class_path": "mc2.benchmarks.tasks.TaskFolder", "init_args": {"folder": str(folder / "colours")}}
    benchmark = {"class_path": "mc2.benchmarks.callbacks.MultilingualBenchmark", "init_args": {"tasks": [task]}}
    quiet = {"enable_model_summary": False, "num_sanity_val_steps": 0, "limit_val_batches": 0}
    tower = {"width": 16, "layers": 1, "heads": 2}
    return {
        "trainer": {"max_steps": 2, "accelerator": "cpu", "devices": 1, "callbacks": [benchmark], **quiet},
        "data": {
            "class_path": "mc2.data.datamodule.ShardDataModule",
            "init_args": {
                "shards": str(write_folder(folder / "shards", [20, 20])),
                "tokenizer": str(small_tokenizer(folder / "tokenizer")),
                "batch_size": 4,
                "preprocess": {"class_path": "mc2.data.preprocess.ImagePreprocess", "init_args": {"image_size": 16}},
            },
        },
        "model": {
            "class_path": "mc2.training.module.ContrastiveModule",
            "init_args": {
                "towers": {"embed_dim": 8, "vision": {"image_size": 16, "patch_size": 8, **tower}, "text": tower},
                "optimizer": {"warmup_steps": 1},
            },
        },
    }


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of two experiments; the second one's overlay doubles the batch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base_config(tmp_path / "data")))
    (tmp_path / "double.yaml").write_text("# a comment\ndata:\n  init_args:\n    batch_size: 8\n")
    sweep = {
        "out": "runs/tiny",
        "prepare": ["--version"],
        "base": ["base.yaml"],
        "experiments": {"plain": [], "double": ["double.yaml"]},
        "models": ["plain"],
        "columns": {"English": {"task": "colours", "languages": ["en"]}, "German": {"task": "colours", "without_languages": ["en"]}},
        "contrasts": {"more pairs": ["double", "plain"]},
    }
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False))
    return tmp_path / "sweep.yaml"


class Forked:
    """Popen's place: the same words in a process that has torch already. Starting is what a run costs here, and the first sweep does it."""

    def __init__(self, command: Sequence[str], stdout: BinaryIO, **_: object) -> None:
        assert command[1:3] == ["-m", "mc2"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: forking with threads
            self.process = multiprocessing.get_context("fork").Process(target=run_words, args=(command[3:], stdout.fileno()), daemon=True)
            self.process.start()

    def wait(self) -> int:
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode


def run_words(words: Sequence[str], output: int) -> None:
    """The body of a forked process: what it prints goes to the file `output`."""
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(output, "w", closefd=False)  # noqa: SIM115  (as long as the process)
    status = mc2(list(words))
    sys.stdout.flush()
    os._exit(status)  # no clean-up of what was inherited from the parent


def test_a_sweep_with_more_seeds_again_and_changed(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["sweep", str(file), "--seeds", "[0]", "--jobs", "2"]) == 0
    first = capsys.readouterr().out
    assert "prepare 1/1  mc2 --version" in first
    assert first.count("seed 0: ") == 2
    monkeypatch.setattr("mc2.sweep.runs.subprocess.Popen", Forked)
    assert main(["sweep", str(file), "--seeds", "[0,1]"]) == 0
    second = capsys.readouterr().out
    assert "prepare" not in second
    assert (second.count("seed 0: was done"), second.count("seed 1: was done")) == (2, 0)
    table = pq.read_table("runs/tiny/results.parquet").to_pylist()
    assert {(row["experiment"], row["seed"]) for row in table} == {("plain", 0), ("plain", 1), ("double", 0), ("double", 1)}
    shown = Path("runs/tiny/table.md").read_text().splitlines()
    assert shown[0] == "| experiment | on top of the base | pairs seen | seeds | English | German |"
    by_hand = {
        (name, code): [row["value"] for row in table if (row["experiment"], row["language"], row["metric"]) == (name, code, "top1")]
        for name in ("plain", "double")
        for code in ("en", "de")
    }
    for line, name, overlay, pairs in ((shown[2], "plain", "nothing", 8), (shown[3], "double", "double", 16)):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:4] == [name, overlay, str(pairs), "2"]
        assert [float(cell.split(" ± ")[0]) for cell in cells[4:]] == pytest.approx(
            [50 * sum(by_hand[name, code]) for code in ("en", "de")], abs=0.051
        )
    assert "| more pairs: double - plain | " in shown[-1]
    assert Path("runs/tiny/experiments/plain/1/model/config.json").exists()
    assert not Path("runs/tiny/experiments/double/1/model").exists()

    def no_process(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr("mc2.sweep.runs.subprocess.Popen", no_process)
    Path("double.yaml").write_text("data:\n  init_args:\n    batch_size: 8 # without the comment, with another\n")
    assert main(["sweep", str(file), "--seeds", "[0,1]"]) == 0
    again = capsys.readouterr().out
    assert again.count("was done") == 4
    assert Path("runs/tiny/table.md").read_text().splitlines() == shown
    Path("double.yaml").write_text("data:\n  init_args:\n    batch_size: 10\n")
    assert main(["sweep", str(file), "--seeds", "[0]"]) == 1
    assert "double, seed 0: FAILED: runs/tiny/experiments/double/0: belongs to another run (configs: found" in capsys.readouterr().out


def test_a_run_that_fails_names_its_log_and_does_not_stop_the_others(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mc2.sweep.runs.subprocess.Popen", Forked)
    Path("double.yaml").write_text("data:\n  init_args:\n    batch_size: 0\n")
    assert main(["sweep", str(file), "--seeds", "[3]"]) == 1
    said = capsys.readouterr().out
    assert "double, seed 3: FAILED: `mc2 fit` failed with status 1: mc2 fit: " in said
    assert "found batch_size 0, need at least 1" in said
    assert "(all of it: runs/tiny/experiments/double/3/log.txt)" in said
    assert "| plain | nothing | 8 | 1 | " in said
    assert "more pairs" not in said  # nothing to compare with


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experiments": {"a b": []}}, r"found an experiment 'a b', need letters"),
        ({"models": ["teacher"]}, r"models names 'teacher', need one of the experiments \(plain, double\)"),
        ({"contrasts": {"x": ["plain"]}}, r"contrasts.x needs two experiments"),
        ({"base": "base.yaml"}, r"base"),
        ({"colums": {"top-1": {"task": "emoji"}}}, r"colums"),
    ],
)
def test_wrong_files_are_one_line(file: Path, change: dict[str, Any], message: str) -> None:
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | change, sort_keys=False))
    with pytest.raises(ValueError, match=message) as caught:
        read_sweep(file)
    assert "\n" not in str(caught.value)


def test_wrong_words_are_refused_before_anything_is_made(file: Path) -> None:
    for words, message in ((["--only", "[plane]"], "no experiment 'plane'"), (["--jobs", "0"], "jobs 0"), (["--seeds", "[]"], "seeds")):
        with pytest.raises(ValueError, match=message):
            main(["sweep", str(file), *words])
    with pytest.raises(ValueError, match=r"nowhere.yaml: not found; give a sweep file"):
        read_sweep(Path("nowhere.yaml"))
    assert not Path("runs").exists()


def test_a_column_is_a_mean_over_languages() -> None:
    rows = [
        Result("colours", "classification", code, "top1", value, 2, 2)
        for code, value in (("mean", 0.9), ("en", 0.5), ("de", 0.1), ("fr", 0.3))
    ]
    assert Column("colours").value(rows) == pytest.approx(0.3)
    assert Column("colours", without_languages=["en"]).value(rows) == pytest.approx(0.2)
    assert Column("colours", languages=["en"]).value(rows) == 0.5
    with pytest.raises(ValueError, match="no row of the results has Column"):
        Column("flags").value(rows)
