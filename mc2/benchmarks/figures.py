"""Pictures of results: a heat map of languages x tasks, and each task's languages as bars beside a reference."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mc2.benchmarks.results import MEAN, Result
from mc2.benchmarks.table import Column, columns_of, titles_of

PANEL = 54  # languages beside each other; more of them go on in a panel below


def heat_map(results: Sequence[Result]) -> Figure:
    """The first headline metric of each task in each language, percent. Grey: the task does not have the language; a panel has the tasks of its languages."""
    columns = columns_of(results, compact=True)
    title = dict(zip(columns, titles_of(columns), strict=True))
    value = {((row.task, row.protocol, row.metric), row.language): 100 * row.value for row in results}
    codes = languages_of(results)
    parts = [codes[start : start + PANEL] for start in range(0, len(codes), PANEL)] or [[]]
    panels = [(part, [column for column in columns if any((column, code) in value for code in part)] or columns) for part in parts]
    heights = [0.28 * len(own) + 0.75 for _, own in panels]
    figure = Figure(figsize=(14, sum(heights) + 0.3), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[len(own) for _, own in panels])[:, 0]
    image = None
    for axes, (part, own) in zip(all_axes, panels, strict=True):
        cells = np.full((len(own), PANEL), np.nan)
        cells[:, : len(part)] = [[value.get((column, code), np.nan) for code in part] for column in own]
        image = axes.imshow(cells, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        grey = np.ma.masked_where(~np.isnan(cells) | (np.arange(PANEL) >= len(part)), np.full(cells.shape, 0.85))
        axes.imshow(grey, cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(part)), part, rotation=90, fontsize=8)
        axes.set_yticks(range(len(own)), [title[column] for column in own], fontsize=8)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        for row, column in zip(*np.nonzero(~np.isnan(cells)), strict=True):
            bright = cells[row, column] > 55
            axes.text(
                column, row, f"{cells[row, column]:.0f}", ha="center", va="center", fontsize=6.5, color="black" if bright else "white"
            )
    if image is not None:
        figure.colorbar(image, ax=list(all_axes), label="%", fraction=0.015, pad=0.01)
    return figure


def bar_columns(results: Sequence[Result], reference: Iterable[Result]) -> list[Column]:
    """What is drawn as bars: the first headline metric of each task, and what the reference says of it (the paper's R@5, say)."""
    found = {(row.task, row.protocol, row.metric) for row in results}
    other = [column for row in reference if (column := (row.task, row.protocol, row.metric)) in found]
    return list(dict.fromkeys([*columns_of(results, compact=True), *other]))


def language_bars(results: Sequence[Result], column: Column, reference: Iterable[Result] = (), reference_name: str = "reference") -> Figure:
    """One task's languages, best first, with 95 % intervals; the mean as a line. The reference: a mark in each language that it has, and its mean as a line."""
    mine = [row for row in results if (row.task, row.protocol, row.metric) == column]
    rows = sorted((row for row in mine if not row.is_mean), key=lambda row: (-row.value, row.language))
    other = {row.language: 100 * row.value for row in reference if (row.task, row.protocol, row.metric) == column}
    panels = [rows[start : start + PANEL] for start in range(0, len(rows), PANEL)] or [[]]
    figure = Figure(figsize=(14, 2.3 * len(panels) + 0.4), layout="constrained")
    all_axes = figure.subplots(len(panels), 1, squeeze=False, sharey=True)[:, 0]
    top = max([100 * (row.high or row.value) for row in rows] + list(other.values()) + [1.0])
    mean = next((100 * row.value for row in mine if row.language == MEAN), None)
    for axes, part in zip(all_axes, panels, strict=True):
        draw_panel(axes, part, other)
        for value, label, colour in ((mean, "mean", "tab:blue"), (other.get(MEAN), f"{reference_name}: mean", "tab:red")):
            if value is not None:
                axes.axhline(value, color=colour, linestyle="--", linewidth=1, label=f"{label} {value:.1f}")
        axes.set(xlim=(-0.7, min(PANEL, max(len(rows), 12)) - 0.3), ylim=(0, min(100, 1.05 * top)), ylabel="%")
        axes.spines[["top", "right"]].set_visible(False)
    if other:
        all_axes[0].plot([], [], "_", color="tab:red", label=reference_name)
    all_axes[0].legend(frameon=False, fontsize=8, ncols=3, loc="upper right")
    figure.suptitle(titles_of([column])[0], fontsize=11)
    return figure


def draw_panel(axes: Any, rows: Sequence[Result], reference: dict[str, float]) -> None:
    """Bars of some languages, with intervals and the reference's marks."""
    places, values = range(len(rows)), [100 * row.value for row in rows]
    axes.bar(places, values, color="tab:blue", alpha=0.75)
    known = [
        (place, row.value, row.low, row.high)
        for place, row in zip(places, rows, strict=True)
        if row.low is not None and row.high is not None
    ]
    if known:
        where, value, low, high = (np.array(column) for column in zip(*known, strict=True))
        span = 100 * np.maximum([value - low, high - value], 0)
        axes.errorbar(where, 100 * value, span, fmt="none", ecolor="black", elinewidth=0.8)
    marks = [(place, reference[row.language]) for place, row in zip(places, rows, strict=True) if row.language in reference]
    if marks:
        axes.plot(*zip(*marks, strict=True), "_", color="tab:red", markersize=9, markeredgewidth=2)
    axes.set_xticks(places, [row.language for row in rows], rotation=90, fontsize=8)


def languages_of(results: Iterable[Result]) -> list[str]:
    """All languages, those that most tasks have first."""
    tasks: dict[str, set[str]] = {}
    for row in results:
        if not row.is_mean:
            tasks.setdefault(row.language, set()).add(row.task)
    return sorted(tasks, key=lambda code: (-len(tasks[code]), code))


def png(figure: Figure) -> bytes:
    """The file of a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
