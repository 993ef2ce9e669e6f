"""One process, DDP and FSDP2 train alike: whole modules in real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy
from torch.distributed.tensor import DTensor

from mc2.training.blocks import ParallelConfig
from mc2.training.parallel import FSDP2Strategy, mixed_precision
from tests.processes import run_processes
from tests.training.tiny import Losses, TinyData, tiny_module, tiny_trainer

STEPS = 20


def whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def train(
    run: str, strategy: str, devices: int, precision: str = "32-true", parallel: ParallelConfig | None = None, encode: bool = True
) -> dict[str, Any]:
    """Losses, parameters and features after a few steps; the towers are also called alone before and after, as benchmarks do.

    strategy: "auto", "ddp", "offloaded", or "fsdp2 x <copies of the model>".
    """
    name, _, copies = strategy.partition(" x ")
    chosen: Any = FSDP2Strategy(replicate=int(copies), timeout_minutes=0.5) if name == "fsdp2" else name
    if name == "offloaded":
        pytest.MonkeyPatch().setattr("mc2.training.parallel.CPUOffloadPolicy", Unpinned)  # in a process of its own
        chosen = OffloadsHere(cpu_offload=True, timeout_minutes=0.5)
    losses, module, data = Losses(), tiny_module(parallel=parallel or ParallelConfig()), TinyData()
    settings: dict[str, Any] = {"max_steps": STEPS, "gradient_clip_val": 1.0, "val_check_interval": 2, "check_val_every_n_epoch": None}
    trainer = tiny_trainer(
        run, strategy=chosen, devices=devices, precision=precision, callbacks=[losses, Encodes()] if encode else [losses], **settings
    )
    trainer.fit(module, data)
    with torch.no_grad():
        features = module.encode_text(torch.tensor([[0, 5, 2], [0, 6, 2]]))
    parameters = {name: whole(parameter).detach().flatten().tolist() for name, parameter in module.named_parameters()}
    return {
        "losses": losses.values,
        "parameters": parameters,
        "features": features.tolist(),
        "val": float(trainer.callback_metrics["val/loss"]),
        "keys": list(module.state_dict()),
    }


class OffloadsHere(FSDP2Strategy):
    """cpu_offload on the CPU: all of its path but the copies from one memory to the other."""

    def set_world_ranks(self) -> None:
        ModelParallelStrategy.set_world_ranks(self)  # ours refuses it

    def _get_process_group_backend(self) -> str:
        return "gloo"  # NCCL wants a GPU


class Unpinned(CPUOffloadPolicy):
    """Pinning, too, wants a GPU."""

    def __init__(self) -> None:
        super().__init__(pin_memory=False)


class Encodes(Callback):
    """Calls each tower alone before the first step."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        module: Any = pl_module
        with torch.no_grad():
            module.encode_image(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
            module.encode_text(torch.tensor([[0, 5, 2]]))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train(str(tmp_path_factory.mktemp("alone")), "auto", 1)


@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [("ddp", 2), ("fsdp2 x 1", 2), ("fsdp2 x 1", 1), ("fsdp2 x 1", 4), ("fsdp2 x 2", 2), ("fsdp2 x 2", 4), ("offloaded", 2)],
)
def test_trains_as_one_process_does(strategy: str, ranks: int, alone: dict[str, Any], tmp_path: Path) -> None:
    assert_same_run(run_processes(train, [(str(tmp_path), strategy, ranks)] * ranks, join=False), alone)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it while it traces
@pytest.mark.parametrize(
    ("strategy", "ranks", "parallel"),
    [
        ("ddp", 2, ParallelConfig(compile="aot_eager", checkpoint_every=2)),
        ("fsdp2 x 1", 2, ParallelConfig(compile="aot_eager", checkpoint_every=1, selective=True)),
    ],
)
def test_compiled_and_checkpointed_blocks_train_alike(
    strategy: str, ranks: int, parallel: ParallelConfig, alone: dict[str, Any], tmp_path: Path
) -> None:
    arguments = [(str(tmp_path), strategy, ranks, "32-true", parallel)] * ranks
    assert_same_run(run_processes(train, arguments, join=False, timeout=180), alone)


def assert_same_run(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Losses, validation, features and weights within rounding, under the same names."""
    for found in ranks:
        assert len(found["losses"]) == STEPS
        assert found["keys"] == alone["keys"]
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert found["val"] == pytest.approx(alone["val"], rel=1e-5)
        torch.testing.assert_close(torch.tensor(found["features"]), torch.tensor(alone["features"]), rtol=1e-4, atol=1e-4)
        assert found["parameters"].keys() == alone["parameters"].keys()
        for name, values in found[
            "parameters"
        ].items():  # AdamW divides by the gradient's size, so rounding shows where gradients are nearly 0
            torch.testing.assert_close(torch.tensor(values), torch.tensor(alone["parameters"][name]), rtol=1e-3, atol=1e-4, msg=name)


def test_bf16_trains_near_fp32(alone: dict[str, Any], tmp_path: Path) -> None:
    assert train(str(tmp_path), "auto", 1, "bf16-mixed")["losses"] == pytest.approx(alone["losses"], rel=0.05)
    for found in run_processes(train, [(str(tmp_path), "fsdp2 x 1", 2, "bf16-mixed")] * 2, join=False):
        assert found["losses"] == pytest.approx(alone["losses"], rel=0.05)


def test_refuses_other_precisions() -> None:
    assert mixed_precision("bf16-mixed").param_dtype == torch.bfloat16
    with pytest.raises(ValueError, match="found 16-mixed, need 32-true or bf16-mixed"):
        mixed_precision("16-mixed")


def test_refuses_processes_that_do_not_make_whole_copies() -> None:
    with pytest.raises(ValueError, match=r"FSDP2Strategy.replicate: found 2 for 3 processes, need a divisor; change it"):
        Trainer(accelerator="cpu", devices=3, strategy=FSDP2Strategy(replicate=2))
    with pytest.raises(ValueError, match=r"replicate: found 0"):
        FSDP2Strategy(replicate=0)
    with pytest.raises(ValueError, match=r"cpu_offload: found true on the CPU, need a GPU"):
        Trainer(accelerator="cpu", devices=2, strategy=FSDP2Strategy(cpu_offload=True))
