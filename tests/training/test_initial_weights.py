"""Beginning with the weights of a model folder, through `mc2 fit` where a user would: other resolutions and contexts, locked towers, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from open_clip.model import resize_pos_embed
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from mc2 import storage
from mc2.data.tokenizer import Tokenizer, train_tokenizer
from mc2.model.two_tower import TwoTower, TwoTowerConfig
from mc2.model.weights import resize_grid
from mc2.training.commands import main
from mc2.training.initial_weights import Tower, check_initial_weights, check_tokenizer, load_initial_weights
from mc2.training.module import ContrastiveModule
from mc2.training.parallel import FSDP2Strategy
from tests.processes import run_processes
from tests.training.tiny import CONTEXT, TOWERS, VOCABULARY, Pairs, TinyData, fit_config, tiny_trainer

pytestmark = pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode")  # Lightning's, of locked towers


def model_folder(folder: Path, config: TwoTowerConfig = TOWERS, seed: int = 7) -> Path:
    """What `mc2 export` writes, but for the tokenizer."""
    torch.manual_seed(seed)
    folder.mkdir()
    towers = TwoTower(config)
    for parameter in towers.parameters():  # biases and norms too
        torch.nn.init.normal_(parameter, std=0.1)
    storage.write_json(folder / "config.json", {"format": "mc2", "mc2": "0", "towers": config.to_json(), "preprocess": {}})
    save_file(towers.state_dict(), folder / "model.safetensors")
    return folder


def read(folder: Path) -> TwoTower:
    towers = TwoTower(TOWERS)
    load_initial_weights(towers, folder, ("vision", "text"))
    return towers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model_folder(tmp_path / "model")


# --- positions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [(16, 27), (7, 12), (4, 2)])
def test_grid_is_resized_as_open_clip_does(before: int, after: int) -> None:
    """16 -> 27 is ViT-H/14 from 224 to 378 px."""
    positions = torch.randn(1 + before * before, 12, generator=torch.Generator().manual_seed(0))
    state = {"visual.positional_embedding": positions.clone()}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=(after, after))))
    found = resize_grid(positions[None], 1, after)
    torch.testing.assert_close(found[0], state["visual.positional_embedding"], rtol=0, atol=0)
    assert torch.equal(found[0, 0], positions[0])


def test_the_same_sizes_give_the_same_features(folder: Path) -> None:
    torch.manual_seed(7)
    original = TwoTower(TOWERS)
    for parameter in original.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    assert check_initial_weights(folder, TOWERS, ("vision", "text")) == []
    found = read(folder)
    batch = Pairs(1, 4, 0, 1).batch(0)
    for one, other in zip(original(batch.image, batch.tokens)[:3], found(batch.image, batch.tokens)[:3], strict=True):
        assert torch.equal(one, other)


def test_larger_images_and_a_shorter_context(folder: Path) -> None:
    config = replace(TOWERS, vision=replace(TOWERS.vision, image_size=40), text=replace(TOWERS.text, context_length=5))
    assert check_initial_weights(folder, config, ("vision", "text")) == [
        "image positions 16 px -> 40 px, bicubic",
        "the first 5 of 8 text positions",
    ]
    small, large = read(folder), TwoTower(config)
    load_initial_weights(large, folder, ("vision", "text"))
    torch.testing.assert_close(
        large.vision.trunk.pos_embed, resize_grid(small.get_parameter("vision.trunk.pos_embed"), 1, 5), rtol=0, atol=0
    )
    tokens = torch.tensor([[0, 5, 9, 6, 2]])
    torch.testing.assert_close(large.encode_text(tokens), small.encode_text(tokens))
    assert large.encode_image(torch.zeros(1, 3, 40, 40, dtype=torch.uint8)).shape == (1, 8)


def test_one_tower_alone_leaves_the_other_and_the_scale(folder: Path) -> None:
    config = replace(TOWERS, text=replace(TOWERS.text, vocab_size=90, context_length=30))
    only: tuple[Tower] = ("vision",)
    assert check_initial_weights(folder, config, only) == []
    towers = TwoTower(config)
    before = {name: tensor.clone() for name, tensor in towers.state_dict().items()}
    load_initial_weights(towers, folder, only)
    stored = read(folder).state_dict()
    for name, tensor in towers.state_dict().items():
        assert torch.equal(tensor, stored[name] if name.startswith("vision.") else before[name]), name


def test_a_logit_bias_is_taken_over_where_both_have_one(folder: Path, tmp_path: Path) -> None:
    biased = replace(TOWERS, init_logit_bias=-10.0)
    both = ("vision", "text")
    other = model_folder(tmp_path / "biased", biased)
    for source, config in ((folder, biased), (other, TOWERS), (other, biased)):
        assert check_initial_weights(source, config, both) == []  # type: ignore[arg-type]
    towers = TwoTower(biased)
    assert towers.logit_bias is not None
    load_initial_weights(towers, folder, both)  # type: ignore[arg-type]
    assert towers.logit_bias().item() == -10.0
    load_initial_weights(towers, other, both)  # type: ignore[arg-type]
    assert towers.logit_bias().item() == load_file(other / "model.safetensors")["logit_bias.bias"].item() != -10.0


# --- what is refused ----------------------------------------------------------------------------------------------------

VISION, TEXT = TOWERS.vision, TOWERS.text
OTHER: dict[str, tuple[TwoTowerConfig, str]] = {
    "vocabulary": (replace(TOWERS, text=replace(TEXT, vocab_size=50)), r"vocabulary of 40 ids \(eos 2\), need 50 \(eos 2\).*init_towers: \[vision\]"),
    "eos": (replace(TOWERS, text=replace(TEXT, eos_id=1)), r"need 40 \(eos 1\) of data.tokenizer; give data.tokenizer: "),
    "context": (replace(TOWERS, text=replace(TEXT, context_length=9)), r"context of 8 tokens, need 9; .* give data.context_length at most 8"),
    "activation": (replace(TOWERS, text=replace(TEXT, activation="quick_gelu")), r"at text.blocks.0.mlp.act: found GELU\(.*\), need QuickGELU\(\)"),
    "heads": (replace(TOWERS, vision=replace(VISION, heads=4)), r"at vision.trunk.blocks.0.attn: found Attention\(heads=2\), need Attention\(heads=4\)"),
    "layers": (replace(TOWERS, text=replace(TEXT, layers=1)), r"at text.blocks.1: found TextBlock\(\), need nothing"),
    "width": (replace(TOWERS, embed_dim=16), r"at vision.projection: found Linear\(in_features=16, out_features=8"),
    "registers": (replace(TOWERS, vision=replace(VISION, timm_kwargs={"reg_tokens": 2})), r"found no weight 'vision.trunk.reg_token'"),
    "statistics": (replace(TOWERS, mean=(0.5, 0.5, 0.5)), r"has mean \(0.48.*need \(0.5, 0.5, 0.5\) of towers.mean"),
    "readout": (replace(TOWERS, vision=replace(VISION, readout="concat")), r"reads out pool at 16 px, need concat"),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER)
def test_towers_that_compute_something_else_are_refused(folder: Path, case: str) -> None:
    config, message = OTHER[case]
    with pytest.raises(ValueError, match=message) as caught:
        check_initial_weights(folder, config, ("vision", "text"))
    assert "\n" not in str(caught.value)


def test_dropout_may_differ(folder: Path) -> None:
    drops = {"patch_drop_rate": 0.5, "proj_drop_rate": 0.1, "drop_path_rate": 0.1}
    assert check_initial_weights(folder, replace(TOWERS, vision=replace(VISION, timm_kwargs=drops)), ("vision", "text")) == []


def test_a_folder_that_is_none_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"found no config.json in .*nowhere, need a model folder; `mc2 import` or `mc2 export` writes one"
    ):
        check_initial_weights(tmp_path / "nowhere", TOWERS, ("vision", "text"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"model.safetensors: no safetensors file, or cut short"):
        check_initial_weights(folder, TOWERS, ("vision", "text"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors: not found; give a model folder"):
        check_initial_weights(folder, TOWERS, ("vision", "text"))


def test_other_pieces_under_the_same_ids_are_refused(tmp_path: Path) -> None:
    for name, caption in (("a", "ein Fuchs im Schnee"), ("b", "une table dans le jardin")):
        train_tokenizer([caption] * 4, tmp_path / name, vocab_size=280)
    check_tokenizer(Tokenizer(tmp_path / "a", 9), tmp_path / "a")
    with pytest.raises(ValueError, match=r"data.tokenizer: found other pieces in .*/b/tokenizer.model .* give data.tokenizer: .*/a$"):
        check_tokenizer(Tokenizer(tmp_path / "b", 9), tmp_path / "a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"locked": ["vision"]}, "model.locked: found .'vision'. with init_from None .* give init_from"),
        ({"locked": ["vision", "text"], "init_from": Path("x")}, "model.locked: found both towers"),
        ({"locked": ["text"], "init_from": Path("x"), "init_towers": ["vision"]}, "need trained weights for what is locked"),
        ({"init_towers": ["vision"]}, "model.init_towers: found .'vision'. without model.init_from"),
        ({"init_towers": [], "init_from": Path("x")}, "model.init_towers: found none"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastiveModule(TOWERS, **settings)


# --- runs ---------------------------------------------------------------------------------------------------------------


def whole(tensor: Tensor) -> list[float]:
    flat: list[float] = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().flatten().tolist()
    return flat


class Watch(Callback):
    """Weights before the first step, gradients before the first update, weights at the end."""

    def __init__(self) -> None:
        self.start: dict[str, list[float]] = {}
        self.gradients: dict[str, list[float]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        self.start = {name: whole(parameter) for name, parameter in pl_module.named_parameters()}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:  # noqa: ARG002
        if trainer.global_step == 0:
            self.gradients = {name: whole(p.grad) for name, p in pl_module.named_parameters() if p.grad is not None}


def train(run: str, strategy: str, devices: int, seed: int, locked: list[str], model: str, micro_batches: int = 1) -> dict[str, Any]:
    """A few steps; every rank's own generator begins elsewhere."""
    chosen = FSDP2Strategy(timeout_minutes=0.5) if strategy == "fsdp2" else strategy
    torch.manual_seed(seed)
    module: Any = ContrastiveModule(TOWERS, init_from=Path(model), locked=locked, micro_batches=micro_batches)  # type: ignore[arg-type]
    module.optimizer_config = replace(module.optimizer_config, warmup_steps=1)
    watch = Watch()
    trainer = tiny_trainer(run, strategy=chosen, devices=devices, max_steps=3, callbacks=[watch], val_check_interval=2)
    trainer.fit(module, TinyData())
    state = {parameter for group in trainer.optimizers[0].param_groups for parameter in group["params"]}
    return {
        "start": watch.start,
        "gradients": watch.gradients,
        "end": {name: whole(parameter) for name, parameter in module.named_parameters()},
        "optimized": [name for name, parameter in module.named_parameters() if parameter in state],
        "modes": (module.towers.vision.training, module.towers.text.training),
    }


@pytest.mark.parametrize(("strategy", "ranks"), [("auto", 1), ("ddp", 2), ("fsdp2", 2)])
def test_every_rank_begins_with_the_stored_weights(folder: Path, tmp_path: Path, strategy: str, ranks: int) -> None:
    need = {f"towers.{name}": whole(parameter) for name, parameter in read(folder).named_parameters()}
    arguments: list[Any] = [(str(tmp_path / "run"), strategy, ranks, seed, [], str(folder)) for seed in range(ranks)]
    for found in run_processes(train, arguments, join=False):
        assert found["start"] == need


@pytest.mark.parametrize("locked", ["vision", "text"])
@pytest.mark.parametrize(("strategy", "ranks", "micro_batches"), [("auto", 1, 1), ("ddp", 2, 1), ("fsdp2", 2, 1), ("fsdp2", 2, 2)])
def test_a_locked_tower_stays_and_the_other_learns_as_ever(
    folder: Path, tmp_path: Path, locked: str, strategy: str, ranks: int, micro_batches: int
) -> None:
    free = train(str(tmp_path / "free"), "auto", 1, 0, [], str(folder))
    arguments = [(str(tmp_path / "run"), strategy, ranks, seed, [locked], str(folder), micro_batches) for seed in range(ranks)]
    for found in run_processes(train, arguments, join=False):
        frozen = {name for name in found["start"] if name.startswith(f"towers.{locked}.")}
        assert all(found["end"][name] == found["start"][name] for name in frozen)
        assert set(found["gradients"]) == set(found["optimized"]) == set(found["start"]) - frozen
        assert found["modes"] == (locked != "vision", locked != "text")
        for name, gradient in found["gradients"].items():
            torch.testing.assert_close(torch.tensor(gradient), torch.tensor(free["gradients"][name]), rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture
def call(tmp_path: Path, folder: Path) -> Callable[..., int]:
    """`mc2 fit` of towers that begin with the folder."""
    config = fit_config(tmp_path / "run", max_steps=2)
    config["model"]["init_args"] |= {"init_from": str(folder), "locked": ["vision"]}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    return lambda *arguments: main([arguments[0], "--config", str(tmp_path / "fit.yaml"), *arguments[1:]])


def test_from_the_command_line(call: Callable[..., int], tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The folder's weights, a locked tower, a resume for which the folder is not needed any more, and the saved config."""
    assert call("fit") == 0
    assert f"weights: vision, text of {folder}\n" in capsys.readouterr().out
    stored = read(folder).state_dict()
    trained = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in stored.items():
        assert torch.equal(trained[f"towers.{name}"], tensor) is name.startswith("vision."), name
    folder.rename(tmp_path / "moved")
    assert call("validate", "--ckpt_path", "last") == 0
    assert main(["fit", "--config", str(tmp_path / "run/config.yaml"), "--ckpt_path", "last", "--trainer.max_steps", "3"]) == 0
    with pytest.raises(ValueError, match=r"model.init_from: found no config.json in .*model"):
        call("fit", "--trainer.default_root_dir", str(tmp_path / "anew"))


def test_a_wrong_folder_is_found_before_anything_is_started(call: Callable[..., int], tmp_path: Path) -> None:
    model_folder(tmp_path / "other", replace(TOWERS, text=replace(TEXT, vocab_size=VOCABULARY + 1, context_length=CONTEXT + 1)))
    with pytest.raises(ValueError, match=r"vocabulary of 41 ids \(eos 2\), need 40") as caught:
        call("fit", "--model.init_args.init_from", str(tmp_path / "other"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
