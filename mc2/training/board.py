"""What TensorBoard needs beside the numbers: an order of charts in which a run is read, and the settings with the scores they led to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

# Tab "Custom scalars": category -> chart -> tags, regular expressions.
LAYOUT: dict[str, dict[str, Sequence[str]]] = {
    "1 does it learn": {
        "loss of all ranks, nats per pair": ["train/loss$", "val/loss"],
        "benchmarks": [".*/mean/.*"],
        "logit scale": ["train/logit_scale"],
        "students": ["students/.*loss", "students/.*distillation", "train/distillation"],
    },
    "2 languages": {"loss of each language": ["loss/.*"], "share of the captions": ["languages/.*"]},
    "3 data": {
        "accepted by balancing": ["data/accepted"],
        "rejected by balancing, share of each language": ["rejected/.*"],
        "drops per sample, by reason": ["data/drops/.*"],
        "captions that fill the context": ["data/full_context"],
    },
    "4 optimizer": {
        "learning rate": ["train/lr"],
        "norms of gradient and parameters": ["norm/gradient", "norm/parameters"],
        "norm of the update": ["norm/update"],
        "skipped steps": ["guard/skipped_steps"],
    },
    "5 speed": {
        "samples and tokens per second": ["speed/samples_per_second", "speed/tokens_per_second"],
        "use of the GPU": ["speed/mfu", "speed/hfu"],
        "seconds a step waits for data: mean and slowest rank": ["speed/wait_seconds", "speed/slowest_wait_seconds"],
        "the same, by stage": ["wait/.*"],
        "the rank that waits longest": ["speed/slowest_rank"],
        "memory, GB": ["speed/memory_gb"],
    },
    "6 wall time": {"goodput": ["time/goodput"], "where the rest goes": ["time/(data|evaluation|checkpoint|start|down|lost)"]},
}
FINAL_METRICS = ("train/loss", "val/loss", "speed/samples_per_second", "time/goodput")
SECTIONS = ("seed_everything", "trainer", "model", "data")
TRAINER_SETTINGS = ("max_steps", "precision", "devices", "num_nodes")


def writers(loggers: Sequence[Logger]) -> list[SummaryWriter]:
    """Of the loggers that write for TensorBoard; on other ranks than 0 there is nothing behind them."""
    return [logger.experiment for logger in loggers if isinstance(logger, TensorBoardLogger)]


def write_layout(writer: SummaryWriter) -> None:
    """The order of charts of the tab "Custom scalars"."""
    writer.add_custom_scalars(
        {category: {chart: ["Multiline", list(tags)] for chart, tags in charts.items()} for category, charts in LAYOUT.items()}
    )


def flat(settings: Any, prefix: str = "") -> dict[str, bool | int | float | str]:
    """Numbers and short texts of nested settings by their dotted keys, without class_path and init_args."""
    if isinstance(settings, Mapping):
        parts = (flat(value, prefix if key == "init_args" else f"{prefix}{key}.") for key, value in settings.items() if key != "class_path")
        return {key: value for part in parts for key, value in part.items()}
    return {prefix.rstrip("."): settings} if isinstance(settings, bool | int | float | str) else {}


def run_settings(run: Path) -> dict[str, bool | int | float | str]:
    """What of a run's config.yaml tells it from others: model, data, seed and the trainer's scale. Empty without one."""
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return {}
    config = config if isinstance(config, dict) else {}
    config["trainer"] = {key: value for key, value in (config.get("trainer") or {}).items() if key in TRAINER_SETTINGS}
    return {key: value for name in SECTIONS for key, value in flat(config.get(name), f"{name}.").items()}


def write_hparams(writer: SummaryWriter, run: Path, metrics: Sequence[str] = FINAL_METRICS) -> None:
    """The tab "HParams": settings, and the last value of these scalars of the run."""
    settings = run_settings(run)
    if settings:
        for summary in hparams(settings, dict.fromkeys(metrics, 0.0)):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]  # None before the first use only, which was the layout
