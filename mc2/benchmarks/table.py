"""Results as one compact table, languages x (task, metric): for the terminal (rich), the README (Markdown) and the report (HTML)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import rich.table

from mc2 import languages
from mc2.benchmarks.results import GROUP_MEAN, MEAN, Result

# metric -> its heading; the order is the order of the columns
HEADLINES = {"top1": "top-1", "t2i_r1": "T2I R@1", "i2t_r1": "I2T R@1"}


@dataclass(frozen=True)
class Table:
    """Cells as text: percent with one decimal, "" where a task does not have the language.

    The first `num_means` rows are means; `num_left_out` languages are in the results but not here.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_means: int
    num_left_out: int

    def to_rich(self) -> rich.table.Table:
        """For the terminal: a rule under the means, what was left out as the caption."""
        caption = f"percent; {self.num_left_out} more languages in the results file" if self.num_left_out else "percent"
        table = rich.table.Table(caption=caption, caption_justify="left")
        for index, title in enumerate(self.header):
            table.add_column(title, justify="right" if index else "left")
        for index, row in enumerate(self.rows):
            table.add_row(*row, end_section=index == self.num_means - 1)
        return table

    def to_markdown(self) -> str:
        """A GitHub table; means in bold."""
        lines = [self.header, ("---", *("---:" for _ in self.header[1:]))]
        lines += [tuple(f"**{cell}**" if cell and index < self.num_means else cell for cell in row) for index, row in enumerate(self.rows)]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)

    def to_html(self) -> str:
        """A `<table>` without styles; rows of means have the class "mean"."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header)
        body = []
        for index, (first, *cells) in enumerate(self.rows):
            row = f"<th>{html.escape(first)}</th>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            body.append(f'<tr class="mean">{row}</tr>' if index < self.num_means else f"<tr>{row}</tr>")
        return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>\n"


def results_table(results: Sequence[Result], max_languages: int | None = None, compact: bool = False) -> Table:
    """Means first, then languages, those that most tasks have before the others. A column for each task, protocol and headline metric.

    `max_languages` keeps the table short; the means are always those of all languages. `compact` keeps it narrow: of each task only the first headline metric.
    """
    tasks, metrics = list(dict.fromkeys(row.task for row in results)), list(HEADLINES)
    wanted = [row for row in results if row.metric in HEADLINES]
    columns = sorted(
        dict.fromkeys((row.task, row.protocol, row.metric) for row in wanted), key=lambda c: (tasks.index(c[0]), metrics.index(c[2]), c[1])
    )
    if compact:
        columns = [next(column for column in columns if column[0] == task) for task in dict.fromkeys(column[0] for column in columns)]
    value = {(row.language, row.task, row.protocol, row.metric): f"{100 * row.value:.1f}" for row in wanted}
    tasks_of: dict[str, set[str]] = {}
    for row in wanted:
        tasks_of.setdefault(row.language, set()).add(row.task)
    means = sorted((label for label in tasks_of if label == MEAN or label.startswith(GROUP_MEAN)), key=lambda label: (label != MEAN, label))
    codes = sorted(tasks_of.keys() - means, key=lambda code: (-len(tasks_of[code]), code))
    shown = codes[:max_languages]
    return Table(
        header=("language", *(column_title(column, [c for c in columns if c != column]) for column in columns)),
        rows=tuple((row_title(label), *(value.get((label, *column), "") for column in columns)) for label in [*means, *shown]),
        num_means=len(means),
        num_left_out=len(codes) - len(shown),
    )


def column_title(column: tuple[str, str, str], others: Sequence[tuple[str, str, str]]) -> str:
    """ "emoji top-1"; with the protocol where the task has the metric under two protocols, or a part of the languages."""
    task, protocol, metric = column
    plain = protocol in ("classification", "retrieval") and not any((task, metric) == (c[0], c[2]) for c in others)
    return f"{task} {HEADLINES[metric]}" if plain else f"{task} {protocol} {HEADLINES[metric]}"


def row_title(label: str) -> str:
    """ "mean", "mean of unseen" or "de German"."""
    if label == MEAN:
        return "mean"
    if label.startswith(GROUP_MEAN):
        return f"mean of {label.removeprefix(GROUP_MEAN)}"
    return f"{label} {languages.name(label)}"
