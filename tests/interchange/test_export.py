"""`mc2 export`: a single-file and a sharded checkpoint become the same model folder, without the run's shards; pickles are refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

import mc2
from mc2.cli import main
from mc2.data.batch import PairBatch
from mc2.interchange.checkpoint import read_checkpoint
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from mc2.training.parallel import FSDP2Strategy
from tests.interchange.tiny import CAPTIONS, CONTEXT, SIZE, tiny_config, tiny_tokenizer
from tests.processes import run_processes

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


class OneBatch(LightningDataModule):
    def train_dataloader(self) -> DataLoader[PairBatch]:
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
        tokens = torch.randint(3, 90, (4, 6), dtype=torch.int32, generator=generator)
        tokens[:, -1] = 2
        batch = PairBatch(image, tokens, [""] * 4, list("abcd"))
        return DataLoader([batch], batch_size=None)  # type: ignore[arg-type]  # a list is a map from positions

    val_dataloader = train_dataloader


def train(run: Path, vocab_size: int, **settings: Any) -> dict[str, Tensor]:
    """Two steps, one checkpoint; returns the whole weights, and under "features" those of the batch's captions."""
    torch.manual_seed(0)
    module = ContrastiveModule(tiny_config(vocab_size), optimizer=OptimizerConfig(warmup_steps=0))
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
        "inference_mode": False,
    }
    trainer = Trainer(accelerator="cpu", max_steps=2, limit_val_batches=0, default_root_dir=run, **{"devices": 1, **quiet, **settings})
    trainer.fit(module, datamodule=OneBatch())
    trainer.save_checkpoint(run / "step=1.ckpt")
    with torch.no_grad():
        features = module.encode_text(next(iter(OneBatch().train_dataloader())).tokens)
    return {"features": features} | {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).clone() for name, value in module.towers.state_dict().items()
    }


def train_sharded(run: Path, vocab_size: int) -> dict[str, Any]:
    weights = train(run, vocab_size, devices=2, strategy=FSDP2Strategy(save_distributed_checkpoint=True, timeout_minutes=0.5))
    return {name: value.numpy() for name, value in weights.items()}


def write_config(run: Path, **data: Any) -> Path:
    """As `mc2 fit` saves it; its shards are long gone."""
    init = {
        "shards": "/gone/shards",
        "tokenizer": str(run / "tokenizer"),
        "context_length": CONTEXT,
        "preprocess": {"image_size": SIZE},
        **data,
    }
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"class_path": "mc2.data.datamodule.ShardDataModule", "init_args": init}}))
    return run / "config.yaml"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    tiny_tokenizer(tmp_path / "tokenizer")
    write_config(tmp_path)
    return tmp_path


def export(run: Path, checkpoint: str = "step=1.ckpt") -> int:
    return main(["export", "--config", str(run / "config.yaml"), "--ckpt_path", str(run / checkpoint), "--out", str(run / "model")])


def check_model(run: Path, weights: dict[str, Any]) -> None:
    clip = mc2.load(run / "model")
    tokens = next(iter(OneBatch().train_dataloader())).tokens
    torch.testing.assert_close(clip.towers.encode_text(tokens), torch.as_tensor(weights["features"]), rtol=1e-5, atol=1e-6)
    found = clip.towers.state_dict()
    weights = {name: value for name, value in weights.items() if name != "features"}
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], torch.as_tensor(value)) for name, value in weights.items())
    assert clip.encode_text(CAPTIONS[:5]).shape == (5, 24)
    assert (clip.preprocess.image_size, clip.tokenizer.context_length) == (SIZE, CONTEXT)


def test_a_single_file_becomes_a_model_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = train(run, tiny_tokenizer(run / "tokenizer").vocab_size)
    assert export(run) == 0
    assert "read it with mc2.load(" in capsys.readouterr().out
    check_model(run, weights)


def test_the_shards_of_two_ranks_become_a_model_folder(run: Path) -> None:
    vocab_size = tiny_tokenizer(run / "tokenizer").vocab_size
    weights, _ = run_processes(train_sharded, [(run, vocab_size)] * 2, join=False)
    assert (run / "step=1.ckpt").is_dir()
    assert export(run) == 0
    check_model(run, weights)


class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


def malicious_shards(folder: Path, mark: Path) -> None:
    folder.mkdir()
    (folder / ".metadata").write_bytes(pickle.dumps(Malice(mark)))


def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"state_dict": {}, "extra": Malice(mark)}, tmp_path / "file.ckpt")
    malicious_shards(tmp_path / "folder.ckpt", mark)
    for name in ("file.ckpt", "folder.ckpt"):
        with pytest.raises(ValueError, match=r"(cannot|can) be read"):
            read_checkpoint(tmp_path / name)
    assert not mark.exists()


def test_a_checkpoint_that_is_none_is_named_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"a": torch.zeros(3)}}, run / "other.ckpt")
    (run / "text.ckpt").write_text("hello")
    whole = (run / "other.ckpt").read_bytes()
    (run / "short.ckpt").write_bytes(whole[: len(whole) // 2])
    torch.save([1, 2], run / "list.ckpt")
    (run / "folder.ckpt").mkdir()
    for name, message in (
        ("missing.ckpt", "missing.ckpt: checkpoint not found"),
        ("other.ckpt", "other.ckpt: does not say which towers it holds"),
        ("text.ckpt", "text.ckpt: no checkpoint that can be read safely"),
        ("short.ckpt", "short.ckpt: no checkpoint that can be read safely, or cut short"),
        ("list.ckpt", "list.ckpt: has no state_dict of tensors"),
        ("folder.ckpt", "folder.ckpt: no sharded checkpoint"),
    ):
        assert export(run, name) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (run / "model").exists()


def test_weights_that_do_not_fit_their_own_configuration_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {"towers.a": torch.zeros(3)}, "towers": tiny_config(400).to_json()}, run / "odd.ckpt")
    assert export(run, "odd.ckpt") == 1
    assert "odd.ckpt: found no weight 'vision." in capsys.readouterr().err


def test_weights_that_are_no_numbers_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(run, tiny_tokenizer(run / "tokenizer").vocab_size)
    checkpoint = torch.load(run / "step=1.ckpt", weights_only=True)
    checkpoint["state_dict"]["towers.logit_scale.log"].fill_(float("nan"))
    torch.save(checkpoint, run / "nan.ckpt")
    assert export(run, "nan.ckpt") == 1
    assert (
        "nan.ckpt: found NaN or infinity in 1 weights (logit_scale.log), need numbers; take a checkpoint before it"
        in capsys.readouterr().err
    )


def test_a_config_that_does_not_fit_is_named_in_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, message in (
        ("a: [", "config.yaml: not valid YAML"),
        ("model: {}", "config.yaml: has no section 'data'"),
        ("data: {shards: x, tokenizer: /gone/tokenizer}", "/gone/tokenizer: no tokenizer here"),
        (f"data: {{shards: x, tokeniser: {run / 'tokenizer'}}}", "tokeniser"),
    ):
        (run / "config.yaml").write_text(text)
        assert export(run) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    (run / "config.yaml").unlink()
    assert export(run) == 1
    assert "config.yaml: not found" in capsys.readouterr().err
