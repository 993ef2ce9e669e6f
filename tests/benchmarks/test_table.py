"""Results files and tables: round trip, means, what is shown and what is left out, complaints."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mc2.benchmarks.means import Drawn, task_results
from mc2.benchmarks.results import Result, Score, read_results, write_results
from mc2.benchmarks.table import results_table


def scores(top1: float) -> list[Drawn]:
    return [
        Drawn(Score("classification", "top1", top1, 10, 5), None),
        Drawn(Score("classification", "top5", 1.0, 10, 5), None),
        Drawn(Score("retrieval", "t2i_r1", 0.5, 5, 10), None),
    ]


def example() -> list[Result]:
    """Emoji in two languages, flags in three of which one is unseen."""
    emoji = task_results("emoji", {"de": scores(0.4), "ja": scores(0.2)}, {})
    return emoji + task_results(
        "flags", {"af": scores(0.1), "de": scores(0.5), "zu": scores(0.3)}, {"seen": ["af", "de"], "unseen": ["zu"]}
    )


def test_means_are_unweighted_over_languages() -> None:
    value = {(row.task, row.language): row.value for row in example() if row.metric == "top1"}
    assert value["emoji", "mean"] == pytest.approx(0.3)
    assert value["flags", "mean"] == pytest.approx(0.3)
    assert value["flags", "mean:seen"] == pytest.approx(0.3)
    assert value["flags", "mean:unseen"] == pytest.approx(0.3)
    row = next(row for row in example() if (row.task, row.language, row.metric) == ("flags", "mean", "t2i_r1"))
    assert (row.num_samples, row.num_candidates) == (15, 10)


def test_a_file_reads_back(tmp_path: Path) -> None:
    write_results(tmp_path / "results.csv", example())
    assert (
        (tmp_path / "results.csv")
        .read_bytes()
        .startswith(b"task,protocol,language,metric,value,num_samples,num_candidates,low,high\nemoji,classification,mean,top1,0.300000,")
    )
    found = read_results(tmp_path / "results.csv")
    assert [(row.language, row.metric, round(row.value, 6)) for row in found] == [
        (row.language, row.metric, round(row.value, 6)) for row in example()
    ]


def test_the_table_shows_means_then_languages_by_the_number_of_tasks() -> None:
    table = results_table(example())
    assert table.header == ("language", "emoji top-1", "emoji T2I R@1", "flags top-1", "flags T2I R@1")
    assert [row[0] for row in table.rows] == [
        "mean",
        "mean of seen",
        "mean of unseen",
        "de German",
        "af Afrikaans",
        "ja Japanese",
        "zu Zulu",
    ]
    assert table.rows[0] == ("mean", "30.0", "50.0", "30.0", "50.0")
    assert table.rows[5] == ("ja Japanese", "20.0", "50.0", "", "")
    assert (table.num_means, table.num_left_out) == (3, 0)


def test_a_short_table_keeps_the_means_and_says_what_is_missing() -> None:
    table = results_table(example(), max_languages=1)
    assert [row[0] for row in table.rows] == ["mean", "mean of seen", "mean of unseen", "de German"]
    console = Console(file=io.StringIO(), width=120)
    console.print(table.to_rich())
    assert isinstance(console.file, io.StringIO)
    assert "3 more languages in the results file" in console.file.getvalue()


def test_a_compact_table_has_one_column_for_each_task() -> None:
    table = results_table(example(), compact=True)
    assert table.header == ("language", "emoji top-1", "flags top-1")
    assert table.rows[0] == ("mean", "30.0", "30.0")


def test_markdown_and_html() -> None:
    table = results_table(example())
    lines = table.to_markdown().splitlines()
    assert lines[:3] == [
        "| language | emoji top-1 | emoji T2I R@1 | flags top-1 | flags T2I R@1 |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| **mean** | **30.0** | **50.0** | **30.0** | **50.0** |",
    ]
    assert lines[5] == "| de German | 40.0 | 50.0 | 50.0 | 50.0 |"
    html = table.to_html()
    assert html.count("<tr") == 8
    assert '<tr class="mean"><th>mean of seen</th><td></td><td></td><td>30.0</td><td>50.0</td></tr>' in html
    assert "<script>" not in results_table([Result("<script>", "p", "de", "top1", 0.5, 1, 1)]).to_html()


def test_a_subset_is_named_in_its_column() -> None:
    rows = [Result("emoji", "classification-2-of-14-languages", "de", "top1", 0.5, 1, 1)]
    assert results_table(rows).header == ("language", "emoji classification-2-of-14-languages top-1")


HEADER = "task,protocol,language,metric,value,num_samples,num_candidates,low,high\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"found columns a, b; need task, protocol"),
        ("", r"no results file \(Empty CSV file\); need columns task, protocol"),
        (HEADER + "emoji,classification,de,top1,high,1,1,0,1\n", r"results.csv: no results file \(In CSV column #4.*'high'"),
        (HEADER + "emoji,classification,de\n", r"results.csv: no results file \(CSV parse error: Expected 9 columns, got 3"),
    ],
)
def test_a_file_that_is_no_results_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path / "results.csv")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"results.csv: not found; run `mc2 test`"):
        read_results(tmp_path / "results.csv")
