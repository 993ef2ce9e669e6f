"""benchmarks.html: results, figures and the worst confusions in one file without references to others."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from string import Template

import pyarrow as pa

from mc2 import storage
from mc2.benchmarks.figures import bar_columns, heat_map, language_bars, png
from mc2.benchmarks.gallery import gallery
from mc2.benchmarks.html_parts import data_url
from mc2.benchmarks.results import MEAN, Result
from mc2.benchmarks.table import columns_of, results_table, titles_of
from mc2.benchmarks.tasks import Task

PAGE_NAME = "benchmarks.html"

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>mc2 benchmarks</title><meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, "Noto Sans", sans-serif; max-width: 1280px; margin: 2rem auto; padding: 0 1rem; color: #1c1c1e }
h1 { font-size: 1.7rem } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd } 
.figure { overflow-x: auto } .figure img { display: block; width: 100%; min-width: 900px }
table { border-collapse: collapse; font-variant-numeric: tabular-nums } td, th { padding: .15rem .7rem; text-align: right } th:first-child { text-align: left }
thead th { border-bottom: 2px solid #888; vertical-align: bottom } tr { background: white } tr.mean { font-weight: 600; background: #f4f6fa }
tbody th { font-weight: inherit; white-space: nowrap; position: sticky; left: 0; background: inherit }
.scroll { overflow: auto; max-height: 42rem } .scroll thead th { position: sticky; top: 0; background: white; z-index: 1 }
@media (max-width: 600px) { tbody th { white-space: normal; min-width: 8rem } td, th { padding: .15rem .4rem } }
.big { display: flex; gap: 1rem; flex-wrap: wrap } .big div { background: #f4f6fa; border-radius: 8px; padding: .6rem 1.2rem } .big b { display: block; font-size: 1.6rem }
.big small { color: #555 } summary { cursor: pointer; padding: .2rem 0 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: .7rem; margin: .4rem 0 1rem }
.card { display: flex; gap: .8rem; border: 1px solid #e2e2e2; border-radius: 8px; padding: .5rem } .card > div:last-child { flex: 1; min-width: 0 }
.image { width: 112px; height: 112px; flex: none; background: center / contain no-repeat } .card p { margin: 0; font-weight: 600 } .card p bdi { display: block }
.card ol { margin: .1rem 0; padding-inline-start: 1.2rem; font-size: .85rem } .right { color: #0a7d32; font-weight: 600 } li.wrong:first-child { color: #b3261e }
.card small { color: #777 }
</style></head><body>
<h1>Benchmarks</h1>
<div class="big">$numbers</div>
<h2>Languages and tasks</h2><div class="figure"><img alt="heat map of languages and tasks" src="$heat_map"></div>
<h2>Table</h2><p>Percent. Means are over languages, unweighted. Counts, candidates and intervals: results.csv.</p><div class="scroll">$table</div>
<h2>Each task</h2><p>Bars with 95 % intervals (bootstrap over samples).$reference</p>$bars
$confusions
</body></html>
""")


def write_page(
    path: Path,
    results: Sequence[Result],
    tasks: Sequence[Task],
    confusions: Sequence[pa.Table],
    reference: Sequence[Result] = (),
    reference_name: str = "",
) -> None:
    """Write the page; `confusions` are of the tasks, in their order."""
    columns = columns_of(results, compact=True)
    drawn = bar_columns(results, reference)
    bars = [
        f'<div class="figure"><img alt="{html.escape(title)}" '
        f'src="{data_url(png(language_bars(results, column, reference, reference_name)), "image/png")}"></div>'
        for column, title in zip(drawn, titles_of(drawn), strict=True)
    ]
    galleries = [
        f"<h3>{html.escape(task.name)}</h3>{gallery(task, table, f'i{index}-')}"
        for index, (task, table) in enumerate(zip(tasks, confusions, strict=True))
        if len(table)
    ]
    head = "<h2>Worst confusions</h2><p>What the image shows, and the answers with their cosines; those that the model was surest of, and wrong.</p>"
    page = PAGE.substitute(
        numbers="".join(headline(row) for row in results if row.language == MEAN and (row.task, row.protocol, row.metric) in columns),
        heat_map=data_url(png(heat_map(results)), "image/png"),
        table=results_table(results).to_html(),
        reference=f" Red: {html.escape(reference_name)}." if reference else "",
        bars="".join(bars),
        confusions=head + "".join(galleries) if galleries else "",
    )
    storage.write_bytes(path, page.encode())


def headline(row: Result) -> str:
    """A task's mean with its interval."""
    between = "" if row.low is None or row.high is None else f" <small>{100 * row.low:.1f} to {100 * row.high:.1f}</small>"
    title = titles_of([(row.task, row.protocol, row.metric)])[0]
    return f"<div><b>{100 * row.value:.1f} %</b>{html.escape(title)}{between}</div>"
