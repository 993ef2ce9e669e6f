"""Students through `mc2 fit`: a teacher with another tokenizer and size, a second student, its benchmark, a resume and its export; and the views that the data module makes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mc2
from mc2.benchmarks.results import read_results
from mc2.cli import main
from mc2.curation.balance import Balance, LanguageBalance
from mc2.data.datamodule import ShardDataModule
from mc2.data.preprocess import ImagePreprocess
from mc2.data.tokenizer import Tokenizer, train_tokenizer
from mc2.data.views import ViewConfig
from mc2.interchange.model_directory import save
from mc2.training.board import LAYOUT, run_settings
from tests.benchmarks.toys import toy_task
from tests.data.shards import TEXTS, small_tokenizer, write_folder
from tests.interchange.tiny import CAPTIONS, CONTEXT, tiny_parts


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with a balance, the tokenizer of the first student, another one, a teacher with a third, a benchmark."""
    folder = tmp_path_factory.mktemp("pool")
    write_folder(folder / "shards", [20, 20])
    probabilities = {"en": [1.0, 1.0], "de": [1.0, 0.5, 0.2], "fr": [1.0]}  # French captions have no entry: all are rejected
    balances = {code: LanguageBalance(np.ones(len(each), dtype=np.int64), 1, np.array(each)) for code, each in probabilities.items()}
    Balance(0.06, 1, "paper", balances).save(folder / "balance", lambda code: [str(i) for i in range(len(probabilities[code]))])
    small_tokenizer(folder / "tokenizer")
    train_tokenizer(CAPTIONS, folder / "other", 340)
    save(folder / "teacher", *tiny_parts(folder / "of_teacher"))
    toy_task(folder / "task", num_images=4, num_classes=2)
    return folder


def towers(size: int) -> dict[str, Any]:
    vision = {"image_size": size, "patch_size": 8, "width": 16, "layers": 1, "heads": 2}
    return {"embed_dim": 8, "vision": vision, "text": {"width": 16, "layers": 1, "heads": 2}}


def config(pool: Path, run: Path) -> Path:
    benchmark = {
        "class_path": "mc2.benchmarks.callbacks.MultilingualBenchmark",
        "init_args": {
            "student": "small",
            "tasks": [{"class_path": "mc2.benchmarks.tasks.TaskFolder", "init_args": {"folder": str(pool / "task")}}],
        },
    }
    pictures = {"class_path": "mc2.training.pictures.Pictures", "init_args": {"every_n_steps": 2, "num_images": 2, "num_captions": 4}}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 2,
        "val_check_interval": 2,
        "log_every_n_steps": 1,
        "default_root_dir": str(run),
        **quiet,
    }
    model = {
        "towers": towers(16),
        "optimizer": {"warmup_steps": 0},
        "teacher": {"folder": str(pool / "teacher")},
        "students": {"small": {"towers": towers(24), "tokenizer": str(pool / "other")}},
    }
    data = {
        "shards": str(pool / "shards"),
        "tokenizer": str(pool / "tokenizer"),
        "balance": str(pool / "balance"),
        "batch_size": 4,
        "steps_per_epoch": 2,
        "context_length": 12,
        "preprocess": {"class_path": "mc2.data.preprocess.ImagePreprocess", "init_args": {"image_size": 16}},
        "val_pairs": 4,
    }
    path = run.with_suffix(".yaml")
    path.write_text(
        yaml.safe_dump(
            {
                "trainer": {**trainer, "callbacks": [benchmark, pictures]},
                "checkpoints": {"every_n_steps": 1},
                "model": {"class_path": "mc2.training.module.ContrastiveModule", "init_args": model},
                "data": {"class_path": "mc2.data.datamodule.ShardDataModule", "init_args": data},
            }
        )
    )
    return path


def check_board(run: Path) -> None:
    """What TensorBoard shows of two starts: every tag of the layout but those of a GPU is there, and all but a few of what is there are in the layout; pictures and
    settings.
    """
    events = EventAccumulator(str(run)).Reload()
    tags = set(events.Tags()["scalars"])
    patterns = {pattern for charts in LAYOUT.values() for of_chart in charts.values() for pattern in of_chart}
    missing = {pattern for pattern in patterns if not any(re.match(pattern, tag) for tag in tags)}
    assert missing == {"speed/mfu", "speed/hfu", "speed/memory_gb"}
    elsewhere = {tag for tag in tags if not tag.startswith("small/task") and not any(re.match(pattern, tag) for pattern in patterns)}
    assert elsewhere == {"epoch", "speed/wait_share", "students/small/logit_scale"}
    assert set(events.Tags()["images"]) == {"pictures/images", "small/benchmarks/languages", "small/benchmarks/task/top1"}
    assert {"custom_scalars__config__", "pictures/captions/text_summary"} <= set(events.Tags()["tensors"])
    assert events.SummaryMetadata("_hparams_/session_start_info").plugin_data.plugin_name == "hparams"
    text = events.Tensors("pictures/captions/text_summary")[0].tensor_proto.string_val[0].decode()
    assert len(text.splitlines()) == 2 + 2
    assert any(caption in text for caption in TEXTS[:3])
    shares = {tag: events.Scalars(tag)[-1].value for tag in tags if tag.startswith("time/")}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
    assert min(shares[f"time/{part}"] for part in ("goodput", "evaluation", "checkpoint", "start", "down")) > 0
    assert run_settings(run)["model.teacher.scale"] == 200


def test_fit_resume_benchmark_and_export(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    path = config(pool, run)
    assert main(["fit", "--config", str(path)]) == 0
    assert main(["fit", "--config", str(path), "--ckpt_path", "last", "--trainer.max_steps", "3"]) == 0
    assert {row.task for row in read_results(run / "small/results.csv")} == {"task"}
    check_board(run)
    export = [
        "export",
        "--config",
        str(run / "config.yaml"),
        "--ckpt_path",
        str(run / "checkpoints/last.ckpt"),
        "--out",
        str(run / "model"),
    ]
    assert main([*export, "--student", "small"]) == 0
    clip, state = mc2.load(run / "model"), torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert clip.tokenizer.vocab_size == Tokenizer(pool / "other").vocab_size != Tokenizer(pool / "tokenizer").vocab_size
    assert clip.preprocess.image_size == 24
    assert all(torch.equal(weight, state[f"students.small.{name}"]) for name, weight in clip.towers.state_dict().items())
    assert main([*export, "--student", "large"]) == 1
    assert "found students ['small'], need 'large'" in capsys.readouterr().err
    changed = ["--model.init_args.students", "null", "--trainer.callbacks", "null"]
    assert main(["fit", "--config", str(path), "--ckpt_path", "last", "--trainer.max_steps", "4", *changed]) == 1
    assert "is of another model (students.small" in capsys.readouterr().err
    assert (
        main(
            ["fit", "--config", str(path), "--trainer.default_root_dir", str(tmp_path / "new"), "--model.init_args.teacher.folder", "gone"]
        )
        == 1
    )
    assert "found no config.json in gone" in capsys.readouterr().err


def test_views_are_the_same_pairs_for_other_models(pool: Path) -> None:
    """Each view equals the batch of a data module of that model's own."""

    def batch(views: dict[str, ViewConfig], size: int, tokenizer: str, context: int) -> Any:
        preprocess = ImagePreprocess(image_size=size)
        data = ShardDataModule(str(pool / "shards"), str(pool / tokenizer), batch_size=4, context_length=context, preprocess=preprocess)
        data.show(views)
        return next(iter(data.loader(0, 1)))

    views = {
        "teacher": ViewConfig(32, pool / "of_teacher", CONTEXT),
        "small": ViewConfig(16, pool / "other", 12),
        "same": ViewConfig(16, None, 12),
        "shorter": ViewConfig(16, None, 5),
    }
    whole = batch(views, 16, "tokenizer", 12)
    assert set(whole.views) == {"teacher", "small", "shorter"}
    assert whole.view("same").tokens is whole.tokens
    for name, size, tokenizer, context in (
        ("teacher", 32, "of_teacher", CONTEXT),
        ("small", 16, "other", 12),
        ("shorter", 16, "tokenizer", 5),
    ):
        alone = batch({}, size, tokenizer, context)
        assert alone.keys == whole.keys
        assert torch.equal(alone.tokens, whole.views[name].tokens)
        torch.testing.assert_close(alone.image, whole.views[name].image, rtol=0, atol=0)
    assert whole.views["shorter"].image is whole.image
