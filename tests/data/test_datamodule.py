"""The data module in a real Trainer, stopped and resumed inside an epoch, on one rank and on two; every bad input before the first step."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from mc2.curation.balance import Balance
from mc2.data.batch import PairBatch
from mc2.data.datamodule import ShardDataModule
from mc2.data.loader import Loader
from mc2.data.preprocess import ImagePreprocess
from mc2.data.shard_stream import Position, stream_records
from mc2.records import ShardInfo, ShardManifest
from mc2.storage import write_json
from tests.data.shards import jpeg, record, write_folder, write_tar
from tests.processes import run_processes

PAIRS = [9, 12, 4, 10, 7, 13]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("shards"), PAIRS)


def data(shards: Path | str, tokenizer_folder: Path, **settings: Any) -> ShardDataModule:
    defaults: dict[str, Any] = {
        "batch_size": 4,
        "steps_per_epoch": 5,
        "shuffle_shards": 2,
        "shuffle_block": 3,
        "preprocess": ImagePreprocess(image_size=8),
    }
    return ShardDataModule(str(shards), str(tokenizer_folder), **{**defaults, **settings})


class Recorder(LightningModule):
    """One weight that every pixel and token moves, so that its losses tell the batches apart; and the keys it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.keys: list[list[str]] = []
        self.losses: list[float] = []
        self.val_keys: list[str] = []

    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:  # noqa: ARG002
        loss = (self.weight * (batch.image.float().mean() + batch.tokens.float().mean()) - 1).square().mean()
        self.keys.append(batch.keys)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: PairBatch, batch_idx: int) -> None:  # noqa: ARG002
        self.val_keys += batch.keys

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-6)


class SaveAt(Callback):
    """<step>.ckpt behind some steps."""

    def __init__(self, steps: Sequence[int], folder: Path) -> None:
        self.steps, self.folder = steps, folder

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in self.steps:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def quiet_trainer(folder: Path, **settings: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=-1,
        check_val_every_n_epoch=None,
        val_check_interval=7,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **settings,
    )


def fit(
    module: ShardDataModule, steps: int, folder: Path, save: Sequence[int] = (), resume: int | None = None, devices: int = 1
) -> Recorder:
    """Saved in `folder` behind the steps `save`, and gone on with from there."""
    recorder = Recorder()
    trainer = quiet_trainer(folder, max_steps=steps, devices=devices, callbacks=[SaveAt(save, folder)])
    checkpoint = None if resume is None else folder / f"{resume}.ckpt"
    trainer.fit(recorder, module, ckpt_path=checkpoint, weights_only=None if resume is None else True)
    return recorder


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_resumed_in_the_middle_repeats_keys_and_losses(
    num_workers: int, shards: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    settings = {"num_workers": num_workers, "val_shards": str(shards), "val_pairs": 9}
    stops = (5, 8)  # the end of a virtual epoch, and inside one
    whole = fit(data(shards, tokenizer_folder, **settings), 16, tmp_path, save=stops)
    assert len(whole.keys) == 16
    assert whole.val_keys == whole.val_keys[:8] * 2  # of 9 pairs two whole batches, at steps 7 and 14
    for stop in stops:
        torch.rand(1)
        rest = fit(data(shards, tokenizer_folder, **settings), 16, tmp_path, resume=stop)
        assert rest.keys == whole.keys[stop:]
        assert rest.losses == whole.losses[stop:]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_fit_without_a_checkpoint_begins_at_the_beginning(num_workers: int, shards: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    """With a data module that another run has used, resumed with other lanes than its own; the same Trainer goes on."""
    fresh = fit(data(shards, tokenizer_folder, num_workers=num_workers), 8, tmp_path)
    fit(data(shards, tokenizer_folder, lanes=2), 3, tmp_path, save=[3])
    module = data(shards, tokenizer_folder, num_workers=num_workers)
    first = fit(module, 5, tmp_path, resume=3)
    assert module.tally.data_sets.total() == 2 * 4
    assert first.keys != fresh.keys[3:5]
    again = fit(module, 8, tmp_path)
    assert again.keys == fresh.keys
    assert again.losses == fresh.losses
    assert module.tally.data_sets.total() == 8 * 4


def test_a_trainer_that_fits_again_goes_on(shards: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    module, recorder = data(shards, tokenizer_folder), Recorder()
    trainer = quiet_trainer(tmp_path, max_steps=3)
    trainer.fit(recorder, module)
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(recorder, module)
    assert recorder.keys == fit(data(shards, tokenizer_folder), 8, tmp_path).keys
    assert module.tally.data_sets.total() == 8 * 4


class Failing(Recorder):
    def training_step(self, batch: PairBatch, batch_idx: int) -> Tensor:
        if batch_idx == 2:
            raise ArithmeticError("step 3")
        return super().training_step(batch, batch_idx)


def test_a_fit_that_fails_leaves_no_workers(shards: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    module = data(shards, tokenizer_folder, num_workers=1)
    with pytest.raises(ArithmeticError, match="step 3"):
        quiet_trainer(tmp_path, max_steps=5).fit(Failing(), module)
    for worker in multiprocessing.active_children():
        worker.join(timeout=10)
    assert not multiprocessing.active_children()


def test_overfit_batches_is_refused(shards: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^trainer.overfit_batches: found 2, need 0 .*; to see the same pairs in every pass, give data.shards"
    ):
        quiet_trainer(tmp_path, overfit_batches=2).fit(Recorder(), data(shards, tokenizer_folder))


class Rank(NamedTuple):
    """What one rank saw: keys of a whole run, of one resumed at step 7, of that one resumed at step 9; of broken shards the sizes of batches and the drops, as counted and by hand."""

    whole: list[list[str]]
    resumed: list[list[str]]
    again: list[list[str]]
    rows: list[int]
    drops: Counter[str]
    drops_by_hand: Counter[str]


def fit_as_a_rank(shards: Path, tokenizer_folder: Path, folder: Path) -> Rank:
    """Inside a process; the harness forks daemons, which may not have workers."""

    def run(save: int, resume: int | None = None) -> list[list[str]]:
        return fit(data(shards, tokenizer_folder, batch_size=2), 12, folder, [save], resume, devices=2).keys

    broken = data(folder / "broken", tokenizer_folder, batch_size=8, val_pairs=4)
    return Rank(
        run(7),
        run(9, 7),
        run(11, 9),  # a resumed run is resumed again
        [len(keys) for keys in fit(broken, 12, folder, devices=2).keys],
        broken.tally.drops,
        broken_by_hand(broken.train_dataloader()),
    )


BROKEN = {
    "0": (b"", "no_image"),
    "1": (b"none", "broken_image"),
    "2": (jpeg()[:200], "broken_image"),
    "3": (b"P4 30000 30000\n", "huge_image"),
}


def write_broken(folder: Path) -> None:
    """Four shards in which every fifth image is broken, in each in another way."""
    for shard, (bad, _) in BROKEN.items():
        pairs = [(f"{shard}-{pair}", bad if pair % 5 == 0 else jpeg()) for pair in range(20)]
        write_tar(folder / f"{shard}.tar", [member for key, image in pairs for member in record(key, b"a fox", image)])


def broken_by_hand(loader: Loader) -> Counter[str]:
    """Reasons of the broken records up to where the streams of a loader are, by their keys; a record without an image has none."""
    found: Counter[str] = Counter()
    (source,) = loader.mixture.sources
    for stream, place in loader._batches.share.places.items():
        for position, item in stream_records(source.plan, stream, Position(), source.reader):
            shard, pair = item.key.split("-")
            found[BROKEN[shard][1]] += int(pair) % 5 == 0
            if position == place.positions[0]:
                break
    return +found


def test_two_ranks_resume_and_one_goes_on_where_they_stopped(shards: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    """And shards with one broken sample in five give both ranks as many whole batches: nobody waits for the other."""
    write_broken(tmp_path / "broken")
    ranks = run_processes(fit_as_a_rank, [(shards, tokenizer_folder, tmp_path)] * 2, join=False, timeout=240)
    for rank in ranks:
        assert rank.resumed == rank.whole[7:]
        assert rank.again == rank.whole[9:]
        assert rank.rows == [8] * 12
        assert rank.drops == rank.drops_by_hand
    assert (ranks[0].drops + ranks[1].drops).keys() == {"no_image", "broken_image", "huge_image"}
    whole = [rank.whole for rank in ranks]
    assert not {key for batch in whole[0][:5] for key in batch} & {key for batch in whole[1][:5] for key in batch}
    state = torch.load(tmp_path / "7.ckpt", weights_only=True)["loops"]["fit_loop"]["state_dict"]["combined_loader"]
    loader = data(shards, tokenizer_folder).loader(0, 1)
    loader.load_state_dict(state[0])
    rows = [batch.keys for batch in loader]
    assert rows == [first + second for first, second in zip(whole[0][7:12], whole[1][7:12], strict=True)]


def test_attributes_are_there_before_setup(tokenizer_folder: Path) -> None:
    module = data("/nowhere", tokenizer_folder, context_length=11)
    assert (module.vocab_size, module.context_length, module.tokenizer.context_length) == (module.tokenizer.vocab_size, 11, 11)
    assert module.preprocess.image_size == 8


def test_validation_batches_are_the_same_on_every_rank_and_time(shards: Path, tokenizer_folder: Path) -> None:
    module = data(shards, tokenizer_folder, val_shards=str(shards), val_pairs=10)
    first, second = list(module.val_dataloader()), list(module.val_dataloader())
    assert [batch.keys for batch in first] == [["0-0000", "0-0001", "0-0002", "0-0003"], ["0-0004", "0-0005", "0-0006", "0-0007"]]
    for ours, theirs in zip(first, second, strict=True):
        assert isinstance(ours, PairBatch)
        assert torch.equal(ours.tokens, theirs.tokens)
    assert [batch.keys for batch in data(shards, tokenizer_folder, val_pairs=3).test_dataloader()] == [["0-0000", "0-0001", "0-0002"]]
    with pytest.raises(ValueError, match=r"no pair of the shards can be used \(other_language 55\)"):
        data(shards, tokenizer_folder, languages=["ja"]).val_dataloader()


def test_validation_reads_a_plain_tar_that_has_changed_as_it_is(tokenizer_folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [file for pair in range(8) for file in record(f"a{pair}", b"a fox")])
    data(tmp_path, tokenizer_folder).train_dataloader()  # builds the index
    pairs = [*(record(f"b{pair}", b"a big red fox") for pair in range(12)), record("c", b"")]
    write_tar(tmp_path / "0.tar", [file for pair in pairs for file in pair])
    module = data(tmp_path, tokenizer_folder, val_shards=str(tmp_path), val_pairs=100)
    for _ in range(2):
        assert [key for batch in module.val_dataloader() for key in batch.keys] == [f"b{pair}" for pair in range(12)]
        assert module.drops == {"empty_caption": 1, "no_captions": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size 0, need at least 1"),
        ({"num_workers": -1}, "num_workers -1, need at least 0"),
        ({"val_pairs": 0}, "val_pairs 0, need at least 1"),
        ({"languages": []}, "empty list of languages"),
        ({"languages": ["en"], "without_languages": ["de"]}, "found languages and without_languages, need at most one"),
        ({"without_languages": ["xx"]}, "unknown language code 'xx'"),
        ({"tokenizer": "/nowhere"}, "no tokenizer here"),
        ({"shards": "/nowhere"}, "no folder of shards here"),
        ({"balance": "/nowhere"}, r"/nowhere/balance\.json: not found"),
        ({"num_workers": 7}, "found 6 shards for 7 streams .*; set num_workers to 6, or pack into more shards"),
        ({"num_workers": 2, "lanes": 8}, "found 6 shards for 8 streams .*; set lanes to 6, or pack"),
        ({"lanes": 3, "num_workers": 2}, "found lanes 3 for 2 workers"),
        ({"shuffle_shards": 0}, "shuffle_shards 0"),
    ],
)
def test_settings_are_checked_before_the_first_step(settings: dict[str, Any], message: str, shards: Path, tokenizer_folder: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ShardDataModule(**{"shards": str(shards), "tokenizer": str(tokenizer_folder), **settings}).train_dataloader()


def manifest(folder: Path, pairs: dict[str, float] | None = None, **said: Any) -> Path:
    infos = tuple(ShardInfo(file.stem, 1, file.stat().st_size, "", pairs=pairs or {}) for file in sorted(folder.glob("*.tar")))
    write_json(folder / "manifest.json", {**ShardManifest(infos, {}, {}).to_json(), **said})
    return folder


def test_shards_and_settings_that_do_not_belong_together(shards: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    whole, balance = Path(shutil.copytree(shards, tmp_path / "whole")), tmp_path / "balance"

    def refused(message: str, **settings: Any) -> None:
        with pytest.raises(ValueError, match=message):
            data(whole, tokenizer_folder, **settings).setup("fit")

    Balance(0.06, None, "paper", {}).save(balance, entries=lambda _: [], summary={"fingerprints": {"metadata": "a"}})
    manifest(whole, {"en": 1}, fingerprints={"metadata": "a"})
    data(whole, tokenizer_folder, balance=str(balance)).setup("fit")
    manifest(whole, {"en": 1}, fingerprints={"metadata": "b"})
    refused(r"balance was made with other metadata than .*whole; give the balance that the shards were packed with", balance=str(balance))
    data(whole, tokenizer_folder, languages=["en", "de"]).setup("fit")
    refused(r"data.languages: found \['de'\], which leaves nothing of .*whole; its captions are in \['en'\]", languages=["de"])
    refused(r"data.without_languages: found \['en'\], which leaves nothing", without_languages=["en"])
    manifest(whole, {"en": 1}, fingerprints={"metadata": "a"}, balanced="offline")
    refused(r"need null: .*whole is balanced already \(`--balanced offline`\)", balance=str(balance))
    data(whole, tokenizer_folder).setup("fit")


def test_shards_are_checked_before_the_first_step(shards: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            data(folder, tokenizer_folder).setup("fit")

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "found no .tar file")
    whole = manifest(Path(shutil.copytree(shards, tmp_path / "whole")))
    data(whole, tokenizer_folder).setup("fit")
    (whole / "00001.tar").rename(whole / "other.tar")
    refused(whole, r"missing: 00001\.tar; not in the manifest: other\.tar")
    (whole / "other.tar").rename(whole / "00001.tar")
    with (whole / "00002.tar").open("ab") as file:
        file.truncate(1000)
    refused(whole, r"00002\.tar: found 1000 bytes, need \d+ by manifest\.json")
    (whole / "manifest.json").write_text(json.dumps({"shards": 1}))
    refused(whole, "not a manifest of shards")
    (whole / "manifest.json").unlink()
    (whole / "00002.tar").write_bytes(b"no tar at all" * 100)
    refused(whole, r"00002\.tar: not a readable tar")


def test_many_shards_of_a_manifest_are_not_asked_for_one_by_one(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{number:05d}" for number in range(2_500)]
    for name in names:
        (tmp_path / f"{name}.tar").touch()
    write_json(tmp_path / "manifest.json", ShardManifest(tuple(ShardInfo(name, 100, 0, "") for name in names), {}, {}).to_json())
    asked: list[Path] = []
    original = Path.stat

    def noted(path: Path, **settings: Any) -> Any:
        asked.append(path)
        return original(path, **settings)

    monkeypatch.setattr(Path, "stat", noted)
    lines = data(tmp_path, tokenizer_folder, num_workers=8, shuffle_block=64).summary(world_size=32)
    assert len([path for path in asked if path.suffix == ".tar"]) == 834  # every third: at most 1,000
    assert "250,000 pairs in 2,500 shards, 9.8 for each of 8 lanes" in lines[0]


def test_plain_img2dataset_tars_train(tokenizer_folder: Path, tmp_path: Path) -> None:
    members = [*record("000000001", b"a red fox"), *record("000000002", {"captions": ["ein Fuchs", "un renard"], "url": "x"})]
    write_tar(tmp_path / "00000.tar", members)
    recorder = fit(data(tmp_path, tokenizer_folder, batch_size=2), 3, tmp_path)
    assert [sorted(keys) for keys in recorder.keys] == [["000000001", "000000002"]] * 3
    with pytest.raises(ValueError, match="no pair of the shards can be used"):
        fit(data(tmp_path, tokenizer_folder, batch_size=2, languages=["en"]), 3, tmp_path)
