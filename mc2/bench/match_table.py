"""The table of `mc2 bench match`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mc2.bench.match_speed import STAGES


def print_table(figures: Mapping[str, Any]) -> None:
    """Captions a second by stage, memory and loading, ours beside the baseline's."""
    from rich.console import Console
    from rich.table import Table

    sample, ours, baseline = figures["sample"], figures["ours"], figures["baseline"]
    title = f"{sample['captions']:,} captions of {sample['characters_per_caption']:.0f} characters in {sample['languages']} languages, {sample['entries']:,} entries"
    table = Table(title=title, caption=_footer(figures), title_justify="left", caption_justify="left")
    for heading in ("captions a second, one core", "mc2", "baseline", "ratio"):
        table.add_column(heading, justify="left" if heading.startswith("captions") else "right")
    for stage in (*STAGES, "all"):
        fast, slow = ours["captions_per_second"][stage], baseline["captions_per_second"][stage]
        table.add_row(stage, f"{fast:,.0f}", f"{slow:,.0f}", f"{fast / slow:.1f}", end_section=stage in (STAGES[-1], "all"))
    single = figures["processes"]["1"]
    for number, speed in figures["processes"].items():
        table.add_row(
            f"{number} process{'es' if number != '1' else ''}",
            f"{speed:,.0f}",
            "",
            f"{speed / single:.2f} x one",
            end_section=number != "1",
        )
    for label, key in (("automata built", "build_seconds"), ("automata loaded", "open_seconds")):
        table.add_row(f"{label}, seconds", f"{ours[key]:.3f}", f"{baseline[key]:.3f}", "")
    for label, key in (
        ("automata, MB", "automata_bytes"),
        ("automata, own MB of a worker", "added_own_bytes"),
        ("worker, own MB", "own_bytes"),
    ):
        table.add_row(label, _megabytes(ours.get(key)), _megabytes(baseline.get(key)) if key != "own_bytes" else "", "")
    Console().print(table)


def _megabytes(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:,.1f}"


def _footer(figures: Mapping[str, Any]) -> str:
    agreement, machine = figures["agreement"], figures["machine"]
    return (
        f"{agreement['same_language'] / agreement['captions']:.1%} of the captions get the same language from both; in {agreement['other_entries']:,} of these "
        f"the entries differ. Commit {figures['commit'] or 'unknown'}; {machine['cpu']}, {machine['cores']} cores."
    )
