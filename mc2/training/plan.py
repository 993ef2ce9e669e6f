"""`mc2 plan`: what a run costs and needs, from the same --config files as `mc2 fit`, before a GPU is taken. Nothing of the model's size is allocated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import rich
from jsonargparse import ArgumentError, Namespace
from rich.table import Table

from mc2.data.tokenizer import Tokenizer
from mc2.model.two_tower import TwoTowerConfig
from mc2.training.blocks import ParallelConfig
from mc2.training.commands import Commands, command_line, quiet_logs
from mc2.training.distillation import StudentConfig, student_text
from mc2.training.findings import Finding, print_findings
from mc2.training.flops import PairFlops, meta_towers
from mc2.training.initial_weights import read_tower_config
from mc2.training.memory import (
    StepSettings,
    TowerShape,
    checkpoint_bytes,
    count,
    host_bytes,
    memory_per_gpu,
    peak_bytes,
    tower_shapes,
)
from mc2.training.preflight import data_findings, disk_finding, loader_finding, measured_per_worker, sbatch_text
from mc2.training.recipe import ENGLISH_BATCH, ENGLISH_EPOCH, NUM_EPOCHS
from mc2.usage import PlainParser, one_line

NOTHING: Any = Namespace  # an empty section; jsonargparse's class has no types
MODULE = "mc2.training.module.ContrastiveModule"
STRATEGY = "mc2.training.parallel.FSDP2Strategy"


class Settings(Commands):
    """The command line of `mc2 fit`, parsed and checked; nothing is built."""

    def instantiate_classes(self) -> None:
        pass

    def after_instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def fit_settings(argv: Sequence[str]) -> Any:
    """The settings that `mc2 fit` would have. Errors: ValueError in one line."""
    quiet_logs()
    try:
        return command_line(["fit", *argv], Settings).config.fit
    except ArgumentError as error:
        raise ValueError(f"{one_line(str(error))}; `mc2 fit --print_config` shows every key") from error


@dataclass(frozen=True)
class Plan:
    """A run: towers, step and length. students: the further ones."""

    towers: TwoTowerConfig
    step: StepSettings
    num_steps: int
    locked: frozenset[str] = frozenset()
    teacher: TwoTowerConfig | None = None
    students: Mapping[str, TwoTowerConfig] = field(default_factory=dict)

    def shapes(self) -> dict[str, TowerShape]:
        """By names such as "vision" and, of a further student, "small text"."""
        found = tower_shapes(meta_towers(self.towers), self.step.tokens, self.locked)
        for student, towers in self.students.items():
            shapes = tower_shapes(meta_towers(towers), self.step.tokens)
            found |= {f"{student} {name}": shape for name, shape in shapes.items()}
        return found

    def flops(self) -> dict[str, PairFlops]:
        """Of all students; the first one has no name."""
        return {"": PairFlops.of(meta_towers(self.towers), self.locked)} | {
            name: PairFlops.of(meta_towers(towers)) for name, towers in self.students.items()
        }

    def pair_flops(self) -> float:
        """A pair's share of a step of all students, with the forward pass of the teacher."""
        taught = PairFlops.of(meta_towers(self.teacher)).forward(self.step.tokens) if self.teacher else 0.0
        return sum(flops.step(self.step.tokens, self.step.all_pairs) for flops in self.flops().values()) + taught

    @property
    def seen_pairs(self) -> int:
        return self.num_steps * self.step.all_pairs


def tokenizer_sizes(data: Any, vocab_size: int | None, eos_id: int) -> dict[str, int]:
    """What the text tower takes from the tokenizer. Errors: ValueError if there is neither a tokenizer nor a number."""
    settings = data.get("init_args") or NOTHING()
    context, path = settings.get("context_length") or 77, settings.get("tokenizer")
    if vocab_size is not None:
        return {"vocab_size": vocab_size, "context_length": context, "eos_id": eos_id}
    if path is None or not Path(path).exists():
        raise ValueError(
            f"data.tokenizer: found nothing at {path}, need its size; give --vocab_size, such as 901629 for XLM-V or 250000 for mT5"
        )
    tokenizer = Tokenizer(path, context)
    return {"vocab_size": tokenizer.vocab_size, "context_length": context, "eos_id": tokenizer.eos_id}


def num_ranks(trainer: Any) -> int:
    """Processes of the configuration; 1 where it leaves them to the machine."""
    devices = str(trainer.devices)
    return int(trainer.num_nodes) * (int(devices) if devices.isdigit() else 1)


def num_workers(data: Any) -> int:
    """Worker processes of each rank."""
    return int((data.get("init_args") or NOTHING()).get("num_workers") or 0)


def plan_of(fit: Any, vocab_size: int | None) -> Plan:
    """The plan of parsed settings. Errors: ValueError for another module, or without a number of steps or pairs."""
    if fit.model.class_path != MODULE:
        raise ValueError(f"model.class_path: found {fit.model.class_path}, need {MODULE}, whose towers can be counted")
    model, data, trainer = fit.model.init_args, fit.data, fit.trainer
    batch = (data.get("init_args") or NOTHING()).get("batch_size")
    if not batch or trainer.max_steps < 1:
        raise ValueError(
            f"plan: found batch_size {batch} and trainer.max_steps {trainer.max_steps}, need both; give data.batch_size and trainer.max_steps"
        )
    stored = model.towers.as_dict()
    sizes = tokenizer_sizes(data, vocab_size, eos_id=2)
    towers = TwoTowerConfig.from_json({**stored, "text": {**stored["text"], **sizes}})
    students = {name: student_towers(name, student, towers) for name, student in (model.students or {}).items()}
    strategy = trainer.strategy if isinstance(trainer.strategy, Namespace) else NOTHING()
    parallel = ParallelConfig(**{each.name: model.parallel[each.name] for each in fields(ParallelConfig)})
    loss = (model.loss or NOTHING()).get("init_args") or NOTHING()
    teacher = read_tower_config(Path(model.teacher.folder)) if model.teacher and Path(model.teacher.folder).exists() else None
    step = StepSettings(
        all_pairs=batch * num_ranks(trainer),
        tokens=sizes["context_length"],
        embed_dim=max(each.embed_dim for each in (towers, *students.values())),  # their losses are computed one after the other
        mixed=trainer.precision == "bf16-mixed",
        sharded=strategy.get("class_path") == STRATEGY,
        replicate=(strategy.get("init_args") or NOTHING()).get("replicate", 1),
        micro_batches=model.micro_batches,
        checkpoint_every=parallel.checkpoint_every,
        selective=parallel.selective,
        tile=loss.get("tile", 2048),
        lazy_vocabulary=model.optimizer.vocabulary == "lazy",
        ema=model.ema is not None,
        cpu_offload=(strategy.get("init_args") or NOTHING()).get("cpu_offload", False),
        teacher=0 if teacher is None else count(meta_towers(teacher)),
    )
    return Plan(towers, step, trainer.max_steps, frozenset(model.locked), teacher, students)


def student_towers(name: str, student: Any, first: TwoTowerConfig) -> TwoTowerConfig:
    """The towers of a further student, with the sizes of its tokenizer. Errors: ValueError for a tokenizer that is not here."""
    towers = TwoTowerConfig.from_json(student.towers.as_dict())
    path = None if student.tokenizer is None else Path(student.tokenizer)
    if path is not None and not path.exists():
        raise ValueError(f"model.students.{name}.tokenizer: found nothing at {path}, need its size; plan where the file is")
    return replace(towers, text=student_text(StudentConfig(towers, path), first))


def summary(plan: Plan) -> Table:
    """Parameters and operations of each tower."""
    table = Table(title="towers", title_justify="left")
    for column in ("", "parameters", "of these token rows", "forward GFLOP a pair", "backward"):
        table.add_column(column, justify="left" if not column else "right")
    shapes = plan.shapes()
    for student, flops in plan.flops().items():
        for tower, of_one, positions in (("vision", flops.vision, flops.image_positions), ("text", flops.text, plan.step.tokens)):
            name = f"{student} {tower}".strip()
            shape = shapes[name]
            backward = f"{of_one.backward(positions) / 1e9:.1f}" if shape.trained else "locked"
            forward = f"{of_one.forward(positions) / 1e9:.1f}"
            table.add_row(name, f"{(shape.parameters + shape.table) / 1e6:,.1f} M", f"{shape.table / 1e6:,.1f} M", forward, backward)
    return table


def memory_table(plan: Plan, gpus: Sequence[int]) -> Table:
    """GB on each GPU, part by part, at the same batch of all ranks."""
    shapes = plan.shapes()
    table = Table(title=f"GB on each GPU, batch of {plan.step.all_pairs:,} pairs (estimate)", title_justify="left")
    columns = {number: memory_per_gpu(shapes, plan.step, number) for number in gpus}
    table.add_column("GPUs")
    for number in gpus:
        table.add_column(f"{number}", justify="right")
    table.add_row("pairs on each", *(f"{plan.step.all_pairs / number:,.4g}" for number in gpus))
    for part in next(iter(columns.values())):
        table.add_row(part, *(f"{columns[number][part] / 1e9:.2f}" for number in gpus))
    table.add_row("peak", *(f"{peak_bytes(columns[number], plan.step) / 1e9:.2f}" for number in gpus), style="bold")
    for name, every in (("checkpoint_every 0", 0), ("checkpoint_every 1", 1)):  # what the other choice would need
        other = replace(plan.step, checkpoint_every=every, selective=False)
        table.add_row(f"peak with {name}", *(f"{peak_bytes(memory_per_gpu(shapes, other, number), other) / 1e9:.2f}" for number in gpus))
    if plan.step.cpu_offload:
        table.add_row("memory of the host", *(f"{host_bytes(shapes, plan.step, number) / 1e9:.2f}" for number in gpus))
    return table


def cost_table(plan: Plan, gpus: Sequence[int], mfu: float, peak_tflops: float) -> Table:
    """Seconds of a step, days, GPU-hours at a utilisation."""
    of_pair = plan.pair_flops()
    pairs_a_second = mfu * peak_tflops * 1e12 / of_pair  # on each GPU
    table = Table(title=f"at {mfu:.0%} of {peak_tflops:g} TFLOP/s, {of_pair / 1e12:.2f} TFLOP a pair", title_justify="left")
    for column in ("GPUs", "pairs/s", "s a step", "days", "GPU-hours"):
        table.add_column(column, justify="right")
    for number in gpus:
        rate = number * pairs_a_second
        seconds = plan.seen_pairs / rate
        table.add_row(
            f"{number}", f"{rate:,.0f}", f"{plan.step.all_pairs / rate:.3g}", f"{seconds / 86400:,.1f}", f"{seconds / 3600 * number:,.0f}"
        )
    return table


def parse_gpus(text: str) -> list[int]:
    """Numbers of GPUs between commas."""
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise ValueError(f"--gpus: found {text!r}, need numbers of GPUs, such as 8,64,384")
    return [int(part) for part in parts]


def main(argv: list[str]) -> int:
    """Print the plan. Exit status 0. Errors: ValueError in one line."""
    parser = PlainParser(
        prog="mc2 plan",
        description="What a run costs and needs: parameters, operations, memory of a GPU, days, shards, loader, disk, the sbatch file. Every other option is one of `mc2 fit`: --config FILE, --trainer.max_steps N ...",
    )
    parser.add_argument(
        "--gpus", help="numbers of GPUs to compare at the same batch, such as 8,64,384; default: those of the configuration"
    )
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that the model's operations reach (default 0.4)")
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="of one GPU in bf16 (default 989: H100)")
    parser.add_argument("--vocab_size", type=int, help="ids of the tokenizer, where its file is not here: 901629 for XLM-V, 250000 for mT5")
    parser.add_argument("--loader", type=Path, help="file of `mc2 bench loader --json FILE`, to compare with what a rank needs")
    parser.add_argument("--sbatch", type=Path, help="file to write: the job of this configuration for SLURM")
    own, rest = parser.parse_known_args(argv[1:])
    if not 0 < own.mfu <= 1 or own.peak_tflops <= 0:
        raise ValueError(f"plan: found --mfu {own.mfu} and --peak_tflops {own.peak_tflops}, need a share up to 1 and a speed above 0")
    fit = fit_settings(rest)
    plan = plan_of(fit, own.vocab_size)
    gpus = parse_gpus(own.gpus) if own.gpus else [num_ranks(fit.trainer)]
    scale = plan.seen_pairs / (ENGLISH_EPOCH * NUM_EPOCHS)
    rich.print(
        f"{plan.num_steps:,} steps of {plan.step.all_pairs:,} pairs: {plan.seen_pairs / 1e9:,.2f} B pairs seen, {scale:.2f} x the English schedule "
        f"(batch {plan.step.all_pairs / ENGLISH_BATCH:.2f} x)"
    )
    for table in (summary(plan), memory_table(plan, gpus), cost_table(plan, gpus, own.mfu, own.peak_tflops)):
        rich.print(table)
    rich.print("Not in the estimate: CUDA context, fragments of the allocator, NCCL, what torch.compile saves or needs, waiting for data.")
    ranks = num_ranks(fit.trainer)
    measured = None if own.loader is None else measured_per_worker(own.loader)
    if fit.model.init_args.teacher and plan.teacher is None:
        text = f"{fit.model.init_args.teacher.folder} is not here, so its memory and operations are not counted; plan again where it is"
        print_findings([Finding("warn", "teacher", text)])
    print_findings(
        [
            *data_findings(fit.data, ranks, plan.seen_pairs),
            loader_finding(
                measured, own.mfu * own.peak_tflops * 1e12 / plan.pair_flops(), num_workers(fit.data), plan.towers.vision.image_size
            ),
            disk_finding(Path(fit.trainer.default_root_dir), checkpoint_bytes(plan.shapes(), plan.step), fit.checkpoints.keep),
        ]
    )
    if own.sbatch is not None:
        write_sbatch(own.sbatch, fit, rest)
    return 0


def write_sbatch(path: Path, fit: Any, arguments: Sequence[str]) -> None:
    """The job of the configuration. Errors: ValueError if the number of processes of a node is left to the machine."""
    devices = str(fit.trainer.devices)
    if not devices.isdigit():
        raise ValueError(f"--sbatch: found trainer.devices {devices}, need the number of processes of a node; give --trainer.devices N")
    name = Path(fit.trainer.default_root_dir).name
    text = sbatch_text(
        arguments, name, int(fit.trainer.num_nodes), int(devices), num_workers(fit.data), gpus=fit.trainer.accelerator in ("gpu", "cuda")
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    rich.print(f"{path}: submit it with `sbatch {path}`")
