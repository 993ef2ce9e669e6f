"""The tables of `mc2 bench loader`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def print_table(figures: Mapping[str, Any]) -> None:
    """Samples, tokens and bytes a second by workers, ours beside open_clip's; processor time by stage; what the models of the zoo need."""
    from rich.console import Console
    from rich.table import Table

    console, sample = Console(), figures["sample"]
    title = f"images of {figures['image_bytes'] / 1000:.0f} kB to {sample['image_size']} px, batch {sample['batch']}"
    table = Table(title=title, title_justify="left")
    for heading in ("workers", "", "samples/s", "tokens/s", "MB/s", "ratio"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for number in next(iter(figures["sides"].values()))["workers"]:
        for name, side in figures["sides"].items():
            row = side["workers"][number]
            speed = row["samples_per_second"]
            ratio = f"{figures['ratio'][number]:.2f}" if figures["ratio"] and name == "mc2" else ""
            table.add_row(
                number,
                name,
                f"{speed:,.0f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{speed * figures['bytes_per_record'] / 1e6:,.1f}",
                ratio,
            )
    console.print(table)
    _print_stages(console, figures)
    _print_appetite(console, figures)


def _print_stages(console: Any, figures: Mapping[str, Any]) -> None:
    stages = figures["stages"]
    parts = ", ".join(f"{stage} {1000 * seconds:.3f}" for stage, seconds in stages.items())
    console.print(f"processor time of a sample in ms, mc2: {parts}; together {1000 * sum(stages.values()):.2f}")
    whole = {name: side["workers"].get("0") for name, side in figures["sides"].items()}
    if all(whole.values()):
        console.print("the whole loader: " + ", ".join(f"{name} {1000 * row['cpu_seconds_per_sample']:.2f}" for name, row in whole.items()))


def _print_appetite(console: Any, figures: Mapping[str, Any]) -> None:
    from rich.table import Table

    sample, per_worker = figures["sample"], figures["samples_per_second_of_a_worker"]
    title = f"one {sample['gpu']} at {sample['mfu']:.0%} of its peak speed, {sample['tokens']} tokens a caption"
    table = Table(title=title, title_justify="left")
    for heading in ("model", "samples/s", "workers it needs"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for name, speed in figures["samples_per_second_of_a_gpu"].items():
        table.add_row(name, f"{speed:,.0f}", f"{speed / per_worker:,.1f}")
    console.print(table)
