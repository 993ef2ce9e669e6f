"""Blocks that are compiled or computed again: same results, same names, and what is computed again is counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mc2.model.two_tower import TwoTower
from mc2.training.blocks import KEPT, ParallelConfig, prepare_blocks
from tests.training.tiny import TOWERS, Pairs, TinyData, tiny_module, tiny_trainer

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it while it traces

ATTENTION = {operation for operation in KEPT if "attention" in str(operation)}


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is computed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts["attention" if func in ATTENTION else str(func)] += 1
        return func(*args, **(kwargs or {}))


def gradients(config: ParallelConfig, count: bool = False, micro_batches: int = 1) -> tuple[dict[str, Tensor], Counter[str]]:
    """Gradients of a batch, and what the backward pass computed."""
    torch.manual_seed(0)
    towers = TwoTower(TOWERS)
    prepare_blocks(towers, config)
    assert list(towers.state_dict()) == list(TwoTower(TOWERS).state_dict())
    image = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1], [0, 8, 9, 2], [0, 2, 1, 1]])
    image_BD, text_BD, scale, _ = towers(image, tokens, micro_batches)
    loss = (scale * image_BD @ text_BD.T).square().mean()
    operations = Operations()
    if count:
        with operations:
            loss.backward()
    else:
        loss.backward()
    return {name: parameter.grad.clone() for name, parameter in towers.named_parameters() if parameter.grad is not None}, operations.counts


def check_close(found: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    """Equal but for rounding, which is that of a gradient's large entries: its small ones are differences of such, added in another order."""
    assert found.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize(
    ("backend", "every", "selective"), [(None, 1, False), (None, 2, True), ("aot_eager", 0, False), ("aot_eager", 1, True)]
)
def test_gradients_are_equal(backend: str | None, every: int, selective: bool) -> None:
    plain, _ = gradients(ParallelConfig())
    found, _ = gradients(ParallelConfig(backend, every, selective))
    check_close(found, plain)


@pytest.mark.parametrize("config", [ParallelConfig(None, 1, True), ParallelConfig("aot_eager", 1)])
def test_blocks_inside_of_micro_batches(config: ParallelConfig) -> None:
    plain, _ = gradients(ParallelConfig())
    found, _ = gradients(config, micro_batches=2)
    check_close(found, plain)


@pytest.mark.parametrize(
    ("every", "selective", "blocks", "attentions"), [(0, False, 0, 0), (1, False, 4, 4), (2, False, 2, 2), (1, True, 4, 0)]
)
def test_only_the_chosen_blocks_are_computed_again(every: int, selective: bool, blocks: int, attentions: int) -> None:
    """Two towers of two blocks with two norms each; selective ones keep attention but not norms."""
    _, counts = gradients(ParallelConfig(checkpoint_every=every, selective=selective), count=True)
    assert counts["aten.native_layer_norm.default"] == 2 * blocks
    assert counts["attention"] == attentions


def test_both_blocks_are_compiled() -> None:
    compiled: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch._dynamo.register_backend(backend, name="counting")
    gradients(ParallelConfig("counting"))
    assert len(compiled) == 2, "equal blocks of a tower share one graph"


def test_a_run_takes_it_from_its_module() -> None:
    module = tiny_module(parallel=ParallelConfig(checkpoint_every=1))
    tiny_trainer("unused", max_steps=2, limit_val_batches=0).fit(module, TinyData())
    with Operations() as operations:
        loss = module(Pairs(1, 4, 0, 1).batch(0))[0]
        loss.backward()
    assert operations.counts["attention"] == 8


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"model.parallel.checkpoint_every: found -1"):
        ParallelConfig(checkpoint_every=-1)
    with pytest.raises(ValueError, match=r"model.parallel.selective: found true without checkpoint_every"):
        ParallelConfig(selective=True)
    with pytest.raises(ValueError, match=r"model.parallel.compile: found 'True', need a backend of torch.compile; set inductor"):
        ParallelConfig(compile="True")
