"""Results as one compact table, languages x (task, metric): for the terminal (rich), the README (Markdown) and the report (HTML)."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import rich.table

from mc2 import languages
from mc2.benchmarks.language_groups import KINDS
from mc2.benchmarks.results import GROUP_MEAN, MEAN, Result

# metric -> its heading; the order is the order of the columns
HEADLINES = {
    "top1": "top-1",
    "mean_per_class": "mean per class",
    "mean_of_top1_and_top5": "mean of top-1 and top-5",
    "roc_auc": "ROC AUC",
    "f1_macro": "macro F1",
    "t2i_r1": "T2I R@1",
    "i2t_r1": "I2T R@1",
    "mean_of_tasks": "mean of tasks",
}


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


Column = tuple[str, str, str]  # task, protocol, metric


def columns_of(results: Sequence[Result], compact: bool = False) -> list[Column]:
    """Task, protocol and metric of every headline, in the order of the tasks; with `compact` of each task only the first."""
    tasks, metrics = list(dict.fromkeys(row.task for row in results)), list(HEADLINES)
    found = dict.fromkeys((row.task, row.protocol, row.metric) for row in results if row.metric in HEADLINES)
    columns = sorted(found, key=lambda c: (tasks.index(c[0]), metrics.index(c[2]), c[1]))
    return list({column[0]: column for column in reversed(columns)}.values())[::-1] if compact else columns


def results_table(results: Sequence[Result], max_languages: int | None = None, compact: bool = False, groups: bool = True) -> Table:
    """Means first, then languages, those that most tasks have before the others. A column for each task, protocol and headline metric.

    `max_languages` keeps the table short; the means are always those of all languages. `compact` keeps it narrow: of each task only the first headline metric.
    Without `groups` there are no means by resources, region and script.
    """
    columns = columns_of(results, compact)
    wanted = [row for row in results if row.metric in HEADLINES]
    value = {(row.language, row.task, row.protocol, row.metric): f"{100 * row.value:.1f}" for row in wanted}
    tasks_of: dict[str, set[str]] = {}
    for row in wanted:
        tasks_of.setdefault(row.language, set()).add(row.task)
    means = sorted((label for label in tasks_of if label == MEAN or label.startswith(GROUP_MEAN)), key=mean_order)
    codes = sorted(tasks_of.keys() - means, key=lambda code: (-len(tasks_of[code]), code))
    if not groups:
        means = [label for label in means if not kind_of(label)]
    shown = codes[:max_languages]
    return Table(
        header=("language", *titles_of(columns)),
        rows=tuple((row_title(label), *(value.get((label, *column), "") for column in columns)) for label in [*means, *shown]),
        num_means=len(means),
        num_left_out=len(codes) - len(shown),
    )


def titles_of(columns: Sequence[Column]) -> list[str]:
    """A heading for each."""
    return [column_title(column, [c for c in columns if c != column]) for column in columns]


def kind_of(label: str) -> str:
    """ "region" for "mean:region:Africa", "" for other rows."""
    kind, colon, _ = label.removeprefix(GROUP_MEAN).partition(":")
    return kind if colon and kind in KINDS else ""


def mean_order(label: str) -> tuple[bool, int, str]:
    """The mean of all, those of the task's own groups, then by resources, region, script."""
    kind = kind_of(label)
    return label != MEAN, KINDS.index(kind) + 1 if kind else 0, label


def column_title(column: Column, others: Sequence[Column]) -> str:
    """ "emoji top-1"; with the protocol where the task has the metric under two protocols, or a part of the languages."""
    task, protocol, metric = column
    plain = protocol in ("classification", "retrieval") and not any((task, metric) == (c[0], c[2]) for c in others)
    title = HEADLINES.get(metric, metric)
    return f"{task} {title}" if plain else f"{task} {protocol} {title}"


def row_title(label: str) -> str:
    """ "mean", "mean of unseen", "mean of region Africa" or "de German"."""
    if label == MEAN:
        return "mean"
    if label.startswith(GROUP_MEAN):
        return f"mean of {label.removeprefix(GROUP_MEAN).replace(':', ' ', 1) if kind_of(label) else label.removeprefix(GROUP_MEAN)}"
    return f"{label} {languages.name(label)}"
