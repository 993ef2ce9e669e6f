"""`mc2 compare A B`: what changed between two evaluations, with significance."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from mc2.benchmarks.compare import Change

SHOWN = 20  # languages of one metric


def compare(before: Path, after: Path, everything: bool = False, out: Path | None = None) -> None:
    """What changed from one evaluation to another of the same tasks, and what of it is more than luck (paired bootstrap over samples).

    Args:
        before: Folder of results: a run's, or one below its results/.
        after: Folder of results to compare with it.
        everything: Print all metrics and every language; otherwise headline metrics, means, and the languages that changed significantly.
        out: CSV file for all rows.
    """
    import rich

    from mc2.benchmarks.compare import compare as compare_folders
    from mc2.benchmarks.compare import write_changes

    comparison = compare_folders(before, after)
    if out is not None:
        write_changes(out, comparison.changes)
    print(f"before: {before}\nafter:  {after}")
    for table in tables(comparison.changes, everything):
        rich.print(table)
    if comparison.only_before or comparison.only_after:
        print(
            f"not compared, because the other has no such row or a mean is over other languages: {comparison.only_before} of before, ",
            end="",
        )
        print(f"{comparison.only_after} of after")


def tables(changes: list[Change], everything: bool) -> list[Table]:
    """One for each task, protocol and metric."""
    from mc2.benchmarks.table import HEADLINES

    groups: dict[tuple[str, str, str], list[Change]] = {}
    for change in changes:
        if everything or change.metric in HEADLINES:
            groups.setdefault((change.task, change.protocol, change.metric), []).append(change)
    return [
        change_table(f"{task} {HEADLINES.get(metric, metric)} ({protocol})", rows, everything)
        for (task, protocol, metric), rows in groups.items()
    ]


def change_table(title: str, rows: list[Change], everything: bool) -> Table:
    """Means, then the languages with the largest changes; the caption counts all of them."""
    from rich.table import Table

    from mc2.benchmarks.table import row_title

    languages = sorted((row for row in rows if not row.is_mean), key=lambda row: -abs(row.change))
    chosen = languages if everything else [row for row in languages if row.is_significant][:SHOWN]
    counts = Counter("better" if row.change > 0 else "worse" for row in languages if row.is_significant)
    caption = (
        f"percent; * significant at a false discovery rate of 5 %. {len(languages)} languages: {counts['better']} higher, {counts['worse']} lower, "
        f"{len(languages) - counts.total()} not told apart"
    )
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for heading in ("language", "before", "after", "change", "95 % interval", ""):
        table.add_column(heading, justify="right" if heading else "left")
    means = [row for row in rows if row.is_mean]
    for index, row in enumerate([*means, *chosen]):
        between = "" if row.low is None or row.high is None else f"{100 * row.low:+.1f} .. {100 * row.high:+.1f}"
        cells = (
            f"{100 * row.before:.1f}",
            f"{100 * row.after:.1f}",
            f"{100 * row.change:+.1f}",
            between,
            "*" if row.is_significant else "",
        )
        table.add_row(row_title(row.language), *cells, end_section=index == len(means) - 1)
    return table


def main(argv: list[str]) -> int:
    """Run `mc2 compare ...`; argv begins with "compare"."""
    from mc2.usage import call

    call(compare, argv[1:], "mc2 compare")
    return 0
