"""Lazy rows end where dense AdamW ends: skipped steps by a slow loop, one process, shards, replicas, whole runs, checkpoints."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mc2.model.token_embedding import TokenEmbedding
from mc2.training.checkpoints import Checkpoints
from mc2.training.lazy_rows import LazyRows
from mc2.training.module import ContrastiveModule
from mc2.training.optimizer import OptimizerConfig
from mc2.training.parallel import FSDP2Strategy
from mc2.training.skipped_steps import Betas, StepHistory, catch_up
from tests.processes import run_processes
from tests.training.tiny import TOWERS, Losses, TinyData, tiny_trainer

ROWS, WIDTH, STEPS, CAPTIONS = 50, 4, 40, 12
SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.1}


# --- skipped steps ------------------------------------------------------------------------------------------------------


def learning_rate(step: int) -> float:
    return 4e-4 * min(1.0, step / 2000) * (1 + 0.3 * math.cos(step / 300))


@pytest.mark.parametrize("eps", [1e-6, 1e-12])
@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.95), (0.9, 0.98), (0.0, 0.9), (0.95, 0.95)])
@pytest.mark.parametrize("start", [1, 700])
def test_catching_up_is_adamw_without_gradients(start: int, beta1: float, beta2: float, eps: float) -> None:
    """AdamW's own recursion in numpy, step by step. Elements from far above eps to far below it; rows that missed 0 to 1000 steps."""
    last, missed = start + 1000, np.array([0, 1, 2, 3, 7, 30, 200, 1000])
    draw = np.random.default_rng(0)
    weight, m = draw.normal(size=(8, 40)) * 0.02, draw.normal(size=(8, 40)) * 1e-7
    v = (10.0 ** draw.uniform(-10, -4, size=(8, 40))) ** 2
    history = StepHistory(start, torch.device("cpu"))
    need_weight, need_m, need_v, decayed = weight.copy(), m.copy(), v.copy(), weight.copy()
    for step in range(start + 1, last + 1):
        lr, now = learning_rate(step), (missed > last - step)[:, None]
        history.append(lr, 0.1)
        need_m, need_v = np.where(now, beta1 * need_m, need_m), np.where(now, beta2 * need_v, need_v)
        movement = need_m / (1 - beta1**step) / (np.sqrt(need_v / (1 - beta2**step)) + eps)
        need_weight = np.where(now, need_weight * (1 - lr * 0.1) - lr * movement, need_weight)
        decayed = np.where(now, decayed * (1 - lr * 0.1), decayed)
    found_weight, found_m, found_v = (torch.from_numpy(each.copy()) for each in (weight, m, v))
    catch_up(found_weight, found_m, found_v, torch.from_numpy(last - missed), history, Betas(beta1, beta2, eps))
    np.testing.assert_allclose(found_m.numpy(), need_m, rtol=1e-10)
    np.testing.assert_allclose(found_v.numpy(), need_v, rtol=1e-10)
    error, moved = np.abs(found_weight.numpy() - need_weight), np.abs(need_weight - decayed)
    assert (error <= 3e-4 * moved + 1e-15).all()
    if beta1 == 0.9 and start == 700:  # the betas that are used, once the bias corrections have settled
        assert (error <= 2e-5 * moved + 1e-15).all()
    assert beta1 == 0 or (moved[-1] > 1e-7).any()  # there is something to get wrong


def test_refuses_betas_whose_movement_would_not_end() -> None:
    with pytest.raises(ValueError, match=r"found beta1 0.95 and beta2 0.9, need beta1 < sqrt\(beta2\) = 0.949 with vocabulary: lazy"):
        OptimizerConfig(beta1=0.95, beta2=0.9, vocabulary="lazy")
    assert OptimizerConfig(beta1=0.95, beta2=0.9).vocabulary == "dense"


# --- the optimizer's rows -----------------------------------------------------------------------------------------------


def ids_of_step(step: int) -> Tensor:
    """Token ids of all ranks' captions, (12, 4); few ids are frequent and most are rare, as in a language."""
    draws = torch.rand(CAPTIONS, 4, generator=torch.Generator().manual_seed(step))
    return (draws**4 * ROWS).to(torch.int32)


def loss_of(rows_BLW: Tensor) -> Any:
    """Mean over captions; gradients near eps and far above it."""
    return (rows_BLW.cumsum(1).sin() * 10.0 ** torch.arange(0, -4 * WIDTH // 2, -2)).sum((1, 2)).mean()


def embedding() -> TokenEmbedding:
    found = TokenEmbedding(ROWS, WIDTH)
    nn.init.normal_(found.weight, std=0.02, generator=torch.Generator().manual_seed(7))
    return found


def run_steps(rows: TokenEmbedding, lazy: bool, part: slice = slice(None), ids: Any = ids_of_step) -> dict[str, Any]:
    """Weights and state after 40 steps, with clipping and a schedule; and how many rows were worked on, beside how many there are."""
    optimizer = torch.optim.AdamW(rows.parameters(), **SETTINGS)
    lazy_rows = LazyRows(rows, optimizer) if lazy else None
    worked, different, norms = [], [], []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 + step) / STEPS
        optimizer.zero_grad()
        loss_of(rows(ids(step)[part])).backward()
        if lazy_rows is None:
            norms.append(float(nn.utils.clip_grad_norm_(rows.parameters(), 4.0)))
        else:
            assert rows.weight.grad is None
            norms.append(float(lazy_rows.clip_gradients(4.0)))
        optimizer.step()
        if lazy_rows is not None:
            worked.append(lazy_rows.num_rows)
            different.append(len(ids(step).unique()))
    weight, state = rows.state_dict()["weight"], optimizer.state_dict()["state"][0]
    found = {"weight": weight, "m": state["exp_avg"], "v": state["exp_avg_sq"], "step": state["step"], "norms": torch.tensor(norms)}
    whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in found.items()}
    return {**{key: value.tolist() for key, value in whole.items()}, "worked": worked, "different": different}


def assert_alike(found: dict[str, Any], need: dict[str, Any], rtol: float, atol: float) -> None:
    for key in ("weight", "norms", "m", "v", "step"):
        scale = torch.tensor(need[key]).abs().max().item()
        torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(need[key]), rtol=rtol, atol=atol * scale, msg=f"{key}")


def test_equals_dense_adamw_where_rows_rest() -> None:
    found, need = run_steps(embedding(), lazy=True), run_steps(embedding(), lazy=False)
    assert_alike(found, need, rtol=1e-4, atol=1e-5)
    assert found["worked"] == found["different"]
    assert max(found["worked"]) < ROWS
    assert max(need["norms"]) > 4.0 > min(need["norms"])  # clipping did something


def test_equals_dense_adamw_to_rounding_where_none_rests() -> None:
    def every_row(step: int) -> Tensor:
        return torch.cat([ids_of_step(step).flatten(), torch.arange(ROWS, dtype=torch.int32)]).view(-1, 2)

    found, need = run_steps(embedding(), lazy=True, ids=every_row), run_steps(embedding(), lazy=False, ids=every_row)
    assert_alike(found, need, rtol=1e-5, atol=1e-6)


def on_ranks(shape: tuple[int, ...] | None, rank: int, ranks: int) -> dict[str, Any]:
    """Sharded on a mesh, or without one a replica on each rank (as under DDP), which begins with rank 0's weights."""
    rows = embedding()
    if shape is not None:
        rows.shard(init_device_mesh("cpu", shape))
    elif rank:
        nn.init.zeros_(rows.weight)
    return run_steps(rows, lazy=True, part=slice(rank, None, ranks))


@pytest.mark.parametrize(("shape", "ranks"), [((1,), 1), ((2,), 2), ((3,), 3), ((2, 2), 4), (None, 2)])
def test_ranks_work_on_the_rows_of_the_global_batch(shape: tuple[int, ...] | None, ranks: int) -> None:
    need = run_steps(embedding(), lazy=False)
    results = run_processes(on_ranks, [(shape, rank, ranks) for rank in range(ranks)])
    for found in results:
        assert_alike(found, need, rtol=2e-4, atol=2e-5)
        assert found["weight"] == results[0]["weight"]  # replicas: to the bit
    shards = results[: shape[-1]] if shape else results[:1]
    assert [sum(worked) for worked in zip(*(found["worked"] for found in shards), strict=True)] == results[0]["different"]


def test_reading_changes_nothing_and_gives_what_is_saved() -> None:
    rows = embedding()
    optimizer = torch.optim.AdamW(rows.parameters(), **SETTINGS)
    lazy_rows = LazyRows(rows, optimizer)
    for step in range(10):
        loss_of(rows(ids_of_step(step))).backward()
        optimizer.step()
    behind = rows.weight.detach().clone()
    everything = torch.arange(ROWS).flip(0).view(2, -1)
    read = rows.eval()(everything)
    assert not lazy_rows.embedding.uses
    torch.testing.assert_close(rows.weight.detach(), behind, rtol=0, atol=0)
    saved = rows.state_dict()["weight"]
    assert (saved - behind).abs().max() > 1e-3
    torch.testing.assert_close(read, saved[everything], rtol=0, atol=0)
    torch.testing.assert_close(rows(everything), read, rtol=0, atol=0)
    lazy_rows.release()
    torch.testing.assert_close(rows(everything), read, rtol=0, atol=0)


def test_gradients_of_an_abandoned_step_are_forgotten() -> None:
    """zero_grad comes between a forward pass and its backward pass, in Lightning: what waits for its gradient stays."""
    found: list[Any] = []
    need: list[Any] = []
    for abandon, results in ((True, found), (False, need)):
        rows = embedding()
        optimizer = torch.optim.AdamW(rows.parameters(), **SETTINGS)
        lazy_rows = LazyRows(rows, optimizer)
        if abandon:
            loss_of(rows(ids_of_step(3))).backward()
        loss = loss_of(rows(ids_of_step(4)))
        lazy_rows.zero_grad()
        loss.backward()
        optimizer.step()
        results.append(rows.state_dict()["weight"].tolist())
    assert found == need


# --- whole runs ---------------------------------------------------------------------------------------------------------


def lazy_module(vocabulary: Any = "lazy", **settings: Any) -> ContrastiveModule:
    torch.manual_seed(0)
    return ContrastiveModule(TOWERS, optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1, vocabulary=vocabulary), **settings)


class SparseData(TinyData):
    """Two pairs a rank at most: most rows of the vocabulary rest in every step."""

    def __init__(self) -> None:
        super().__init__(num_batches=8, batch_size=4)


class DenseGradients(Callback):
    """In how many steps the whole table has a gradient."""

    found = 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:  # noqa: ARG002
        self.found += cast(ContrastiveModule, pl_module).towers.text.token_embedding.weight.grad is not None


def fit(
    run: str,
    vocabulary: str,
    strategy: str = "auto",
    devices: int = 1,
    ckpt_path: str | None = None,
    folder: bool = False,
    async_save: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Losses, final weights, and the steps in which the table had a gradient."""
    sharded = FSDP2Strategy(replicate=2 if strategy == "hsdp" else 1, timeout_minutes=0.5, save_distributed_checkpoint=folder)
    chosen = sharded if strategy in ("fsdp2", "hsdp") else strategy
    losses, gradients, module = Losses(), DenseGradients(), lazy_module(vocabulary, micro_batches=settings.pop("micro_batches", 1))
    fixed = {"max_steps": 8, "gradient_clip_val": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None}
    checkpoints = Checkpoints(every_n_steps=4, async_save=async_save)
    trainer = tiny_trainer(
        run,
        strategy=chosen,
        devices=devices,
        callbacks=[losses, gradients, checkpoints],
        enable_checkpointing=True,
        **{**fixed, **settings},
    )
    trainer.fit(module, SparseData(), ckpt_path=ckpt_path, weights_only=True)
    with torch.no_grad():
        features = module.encode_text(torch.tensor([[0, 5, 2], [0, 6, 2]]))
    weights = {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in module.state_dict().items()}
    return {
        "losses": losses.values,
        "features": features.tolist(),
        "table": weights["towers.text.token_embedding.weight"].tolist(),
        "dense": gradients.found,
        "val": float(trainer.callback_metrics["val/loss"]),
    }


def assert_same_run(found: dict[str, Any], need: dict[str, Any]) -> None:
    last = len(found["losses"])
    assert found["losses"] == pytest.approx(need["losses"][-last:], rel=2e-5)
    assert found["val"] == pytest.approx(need["val"], rel=2e-5)
    for key in ("features", "table"):  # AdamW divides by the gradient's size, so rounding shows where gradients are nearly 0
        torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(need[key]), rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    found = fit(str(tmp_path_factory.mktemp("dense")), "dense")
    assert found["dense"] == 8
    return found


@pytest.mark.parametrize(
    ("strategy", "ranks", "micro_batches"), [("auto", 1, 2), ("ddp", 2, 1), ("fsdp2", 2, 1), ("fsdp2", 2, 2), ("hsdp", 4, 1)]
)
def test_trains_as_dense_adamw_does(strategy: str, ranks: int, micro_batches: int, dense: dict[str, Any], tmp_path: Path) -> None:
    run = partial(fit, strategy=strategy, devices=ranks, micro_batches=micro_batches)
    for found in run_processes(run, [(str(tmp_path), "lazy")] * ranks, join=False):
        assert found["dense"] == 0
        assert_same_run(found, dense)


def test_goes_on_to_the_bit(tmp_path: Path) -> None:
    """Also from what was copied while training went on."""
    whole = fit(str(tmp_path / "whole"), "lazy", async_save=True)
    rest = fit(str(tmp_path / "rest"), "lazy", ckpt_path=str(tmp_path / "whole/checkpoints/step=4.ckpt"))
    assert rest["losses"] == whole["losses"][4:]
    assert rest["table"] == whole["table"]


@pytest.mark.parametrize("folder", [True, False])
def test_goes_on_on_other_ranks(folder: bool, dense: dict[str, Any], tmp_path: Path) -> None:
    """Two ranks write at step 4 while they train on; four go on; a single file also goes on without a strategy, and as dense AdamW."""
    two = partial(fit, strategy="fsdp2", devices=2, folder=folder, async_save=True)
    for found in run_processes(two, [(str(tmp_path / "two"), "lazy")] * 2, join=False):
        assert_same_run(found, dense)
    middle = str(tmp_path / "two/checkpoints/step=4.ckpt")
    four = partial(fit, strategy="fsdp2", devices=4, folder=folder, ckpt_path=middle)
    for found in run_processes(four, [(str(tmp_path / "four"), "lazy")] * 4, join=False):
        assert len(found["losses"]) == 4
        assert_same_run(found, dense)
    if not folder:
        for vocabulary in ("lazy", "dense"):
            assert_same_run(fit(str(tmp_path / vocabulary), vocabulary, ckpt_path=middle), dense)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "64-true"}, "trainer.precision: found 64-true, need 32-true or bf16-mixed with vocabulary: lazy"),
        ({"gradient_clip_algorithm": "value"}, "trainer.gradient_clip_algorithm: found value, need norm with vocabulary: lazy"),
    ],
)
def test_refuses_what_it_cannot_do(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(str(tmp_path), "lazy", **settings)


def test_refuses_a_locked_text_tower(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer\.vocabulary: found lazy with a locked text tower"):
        lazy_module(init_from=tmp_path, locked=["text"])
