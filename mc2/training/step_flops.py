"""Operations of a training step of the module, from the batch that it got."""

from __future__ import annotations

from mc2.data.batch import PairBatch
from mc2.training.distillation import TEACHER
from mc2.training.flops import PairFlops, meta_towers
from mc2.training.module import ContrastiveModule


class StepFlops:
    """Operations of a step on this rank: of the students, and the teacher's forward pass."""

    def __init__(self, module: ContrastiveModule) -> None:
        self._first = PairFlops.of(meta_towers(module.tower_config), frozenset(module.locked))
        self._students = {name: PairFlops.of(meta_towers(each.towers)) for name, each in module.students_config.items()}
        self._teacher = PairFlops.of(module._teacher.towers) if module._teacher is not None else None
        self._parallel, self._micro_batches = module.parallel, module.micro_batches

    def __call__(self, batch: PairBatch, world_size: int) -> tuple[float, float]:
        """What is useful, and what is computed a second time."""
        num_pairs, all_pairs = len(batch.image), len(batch.image) * world_size
        students = [(self._first, batch.tokens), *((flops, batch.view(name).tokens) for name, flops in self._students.items())]
        useful = sum(flops.step(tokens.shape[1], all_pairs) for flops, tokens in students)
        again = sum(flops.recomputed(tokens.shape[1], self._parallel, self._micro_batches) for flops, tokens in students)
        if self._teacher is not None:
            useful += self._teacher.forward(batch.view(TEACHER).tokens.shape[1])
        return num_pairs * useful, num_pairs * again
