"""The picture of a curation: head and tail of the entry counts before and after balancing, and every language's way from captions to kept ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mc2 import storage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, GREY, BEFORE, AFTER, MATCHED = "#22303c", "#8a97a3", "#b8c4ce", "#d1495b", "#2e86ab"
NUM_CURVES, NUM_BARS = 4, 24


def draw_figure(report: Mapping[str, Any], balance: Path, path: Path) -> None:
    """Write the PNG: curves of the languages with the most matches, cumulative shares, captions and agreement per language."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": GREY,
        "axes.titlelocation": "left",
        "axes.titleweight": "bold",
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(13, 8.5), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subfigures(1, 2, width_ratios=(1.25, 1), squeeze=False)[0]
        curves = left.subplots(2, 2)
        matches = {code: row["matches"] for code, row in report["languages"].items() if row.get("matches")}
        codes = sorted(matches, key=lambda code: (-matches[code], code))[:NUM_CURVES]
        for axes, code in zip(curves.flat, codes, strict=False):
            _draw_counts(axes, code, report["languages"][code], balance)
        for axes in list(curves.flat)[len(codes) :]:
            axes.set_axis_off()
        left.suptitle(
            f"Entry counts before and after balancing (tail share p = {report['tail_share']:.1%})", x=0.01, ha="left", fontweight="bold"
        )
        _draw_languages(right.subplots(1, 1), report)
        right.suptitle("Captions per language", x=0.01, ha="left", fontweight="bold")
        with storage.atomic_write(path) as file:
            figure.savefig(file, format="png", metadata={"Software": None})


def _draw_counts(axes: Axes, code: str, row: Mapping[str, Any], balance: Path) -> None:
    """Sorted entry counts, before and expected after, log-log, with the threshold."""
    table = pq.read_table(balance / f"{code}.parquet", columns=["count", "expected_count"])
    before, after = _sorted(table["count"].to_numpy()), _sorted(table["expected_count"].to_numpy())
    rank = np.arange(1, len(before) + 1)
    axes.fill_between(rank, after, before, color=BEFORE, alpha=0.45, linewidth=0)
    axes.plot(rank, before, color=GREY, linewidth=3.2, label="before")
    axes.plot(rank, after, color=AFTER, linewidth=1.8, label="after")
    if row["head_entries"]:
        axes.axhline(row["threshold"], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(f"t = {row['threshold']:,}", (1, row["threshold"]), (0, 3), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="entry, by rank", ylabel="captions with the entry", title=f"{row['name']} ({code})")
    axes.set_ylim(bottom=0.5)
    axes.legend(frameon=False, loc="upper right")


def _sorted(counts: NDArray[Any]) -> NDArray[Any]:
    return np.sort(counts)[::-1]


def _draw_languages(axes: Axes, report: Mapping[str, Any]) -> None:
    """One row per language: captions, matched, kept, as nested bars, and a dot for what is really drawn; the agreement of the language identification is beside.

    Of many languages the largest, and in the last row the others together.
    """
    rows = [item for item in report["languages"].items() if item[1]["captions"]]
    rows = sorted(rows, key=lambda item: (-item[1]["captions"], item[0]))
    if len(rows) > NUM_BARS:
        others = rows[NUM_BARS - 1 :]
        sums = {key: sum(row.get(key, 0) for _, row in others) for key in ("captions", "matched", "expected_captions", "drawn_captions")}
        rows = [*rows[: NUM_BARS - 1], (f"{len(others)} more", sums)]
    position = np.arange(len(rows))[::-1]
    for key, colour, height, label in (
        ("captions", BEFORE, 0.82, "captions"),
        ("matched", MATCHED, 0.52, "with an entry"),
        ("expected_captions", AFTER, 0.22, "kept (expected)"),
    ):
        axes.barh(position, [row.get(key, 0) for _, row in rows], height, color=colour, label=label)
    drawn = [row.get("drawn_captions", 0) or np.nan for _, row in rows]
    axes.plot(drawn, position, "o", color=INK, markersize=3, label="kept (drawn)")
    axes.set_yticks(position, [code for code, _ in rows])
    axes.set(xscale="log", xlabel="captions")
    axes.set_xlim(left=max(0.8, 0.5 * min((row.get("expected_captions") or 1 for _, row in rows), default=1)))
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.8, len(rows) - 0.2)
    if any("id_agreement" in row for _, row in rows):
        _write_agreement(axes, [row.get("id_agreement") for _, row in rows], position)
    (dots, *bars), labels = axes.get_legend_handles_labels()
    axes.legend([*bars, dots], [*labels[1:], labels[0]], frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=4)


def _write_agreement(axes: Axes, shares: list[float | None], position: NDArray[np.int64]) -> None:
    """A column of percentages at the right edge."""
    place = axes.get_yaxis_transform()
    axes.text(1.01, len(shares) - 0.2, "id\nagrees", transform=place, fontsize=8, va="bottom")
    for share, y in zip(shares, position.tolist(), strict=True):
        axes.text(1.01, y, "" if share is None else f"{share:.0%}", transform=place, fontsize=8, va="center")
