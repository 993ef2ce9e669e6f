"""What curation did to a pool: a table in the terminal, `report.json` and `report.png`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mc2 import languages, storage
from mc2.curation.duplicates import REASONS as DUPLICATE_REASONS
from mc2.curation.matched import matched_files
from mc2.curation.report_figure import draw_figure

NOT_IDENTIFIED = ("empty_caption", "not_utf8", "long_caption")  # drops before the language identification


def write_report(
    balance: str | Path,
    out: str | Path,
    matched: str | Path | None = None,
    truth: str | Path | None = None,
    shards: str | Path | None = None,
    show: bool = True,
) -> dict[str, Any]:
    """Write `report.json` and `report.png`, and print the table. Returns what `report.json` holds.

    Args:
        balance: Folder of `mc2 curate balance`.
        out: Folder of the report.
        matched: Folder of `mc2 curate match`; needed for `truth`.
        truth: Parquet (key, caption_index, language, ...) with the true language of captions; empty where a caption has none.
        shards: Folder of `mc2 curate pack`: adds what was really packed.
        show: Print the table.

    Errors: ValueError for a folder whose stage has not finished, and for folders that do not belong together.
    """
    balance, out = Path(balance), Path(out)
    fingerprint = storage.finished(balance, "balance", "mc2 curate balance")["fingerprint"]
    report: dict[str, Any] = storage.read_json(balance / "balance.json")
    for code, row in report["languages"].items():
        row["name"] = languages.name(code)
        row["tail_share"] = row["tail_matches"] / row["matches"] if row["matches"] else None
    if truth is not None:
        if matched is None:
            raise ValueError("report: found a truth without matched captions, need both; give the folder of `mc2 curate match`")
        if storage.finished(Path(matched), "match", "mc2 curate match")["fingerprint"] != report["fingerprints"]["matched"]:
            raise ValueError(f"{matched}: is another match than {balance} was balanced over; give the two that belong together")
        _add_agreement(report, Path(matched), Path(truth))
    matched_drops = report["drops"]
    if shards is not None:
        _add_packed(report, Path(shards), fingerprint)
    report["ways"] = ways(report, matched_drops)
    storage.remove_stale(out)
    storage.write_json(out / "report.json", report)
    draw_figure(report, balance, out / "report.png")
    if show:
        print_table(report)
    return report


def _add_packed(report: dict[str, Any], shards: Path, balance: str) -> None:
    """balance: its fingerprint."""
    storage.finished(shards, "pack", "mc2 curate pack")
    manifest = storage.read_json(shards / "manifest.json")
    if manifest["fingerprints"]["balance"] != balance:
        raise ValueError(f"{shards}: was packed with another balance than the report's; give the two that belong together")
    for code, row in report["languages"].items():
        row["packed_captions"] = sum(shard["captions"].get(code, 0) for shard in manifest["shards"])
    report["total"]["packed_captions"] = sum(row["packed_captions"] for row in report["languages"].values())
    report["total"]["packed_pairs"] = sum(shard["num_pairs"] for shard in manifest["shards"])
    report["total"]["replaced_images"] = manifest["replaced"]
    report["drops"] = manifest["drops"]


UNREAD_PAIRS = ("broken_record", "duplicate_key", "no_image", "no_url", "no_captions")  # drops of whole pairs by the readers of pools

# A way: what there is at the beginning, then each loss as a negative number, and in between and last what is left.
Way = list[tuple[str, int]]


def ways(report: Mapping[str, Any], matched_drops: Mapping[str, int]) -> dict[str, Way]:
    """How the captions and the pairs of the pool become those that are matched and packed. `matched_drops`: those before balancing.

    The captions of a pair that could not be read are not among the captions: nobody has counted them.
    """
    total, lost = report["total"], Counter(report["caption_drops"])
    no_entry = lost.pop("no_entry", 0)
    if many := matched_drops.get("many_captions", 0):
        lost["many_captions"] = many
    unread = Counter({reason: matched_drops[reason] for reason in UNREAD_PAIRS if reason in matched_drops})
    captions: Way = [("in the pool", total["pool_captions"] + many), *((reason, -number) for reason, number in lost.items())]
    captions += [
        ("in a language with metadata", total["captions"]),
        ("no_entry", -no_entry),
        ("of duplicates", -total["duplicate_captions"]),
    ]
    captions += [("matched", total["matched"])]
    pairs: Way = [("in the pool", total["pairs"] + unread.total())]
    unread["no_captions"] += total["pairs"] - total["pairs_matched"] - total["duplicate_pairs"]
    pairs += [*((reason, -number) for reason, number in unread.items()), ("duplicates", -total["duplicate_pairs"])]
    pairs += [("matched", total["pairs_matched"])]
    if "packed_pairs" in total:
        packing = Counter(report["drops"]) - Counter(matched_drops)
        pairs += [(reason, -number) for reason, number in sorted(packing.items()) if reason not in ("no_captions", *DUPLICATE_REASONS)]
        pairs += [("packed", total["packed_pairs"])]
    return {"captions": [step for step in captions if step[1]], "pairs": [step for step in pairs if step[1]]}


# --- agreement of the language identification with the truth ------------------------------------------------------------


def _add_agreement(report: dict[str, Any], matched: Path, truth: Path) -> None:
    """Per true language the number of its captions and the share that was identified as it; macro: the unweighted mean over languages."""
    rows = language_agreement(matched, truth)
    for code, (number, share) in rows.items():
        report["languages"].setdefault(code, {"name": languages.name(code), "captions": 0, "matched": 0}).update(
            {"true_captions": number, "id_agreement": share}
        )
    total = sum(number for number, _ in rows.values())
    report["total"]["true_captions"] = total
    report["total"]["id_agreement"] = sum(number * share for number, share in rows.values()) / total if total else None
    report["total"]["id_agreement_macro"] = sum(share for _, share in rows.values()) / len(rows) if rows else None


def language_agreement(matched: Path, truth: Path) -> dict[str, tuple[int, float]]:
    """True metadata language -> (captions with this truth that were looked at, share identified as this language)."""
    try:
        true = pq.read_table(truth, columns=["key", "caption_index", "language"])
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{truth}: cannot be read as a truth, a parquet with key, caption_index and language ({error})") from error
    true = true.filter(pc.not_equal(pc.fill_null(true["language"], ""), ""))
    codes = {code: languages.metadata_code(code) for code in pc.unique(true["language"]).to_pylist()}
    true = true.set_column(2, "truth", pa.array([codes[code] for code in true["language"].to_pylist()], pa.string()))
    true = true.set_column(1, "caption_index", true["caption_index"].cast(pa.int32()))
    found = pa.concat_tables(pq.read_table(path, columns=["key", "caption_index", "language", "drop"]) for path in matched_files(matched))
    found = found.filter(pc.invert(pc.is_in(found["drop"], pa.array(NOT_IDENTIFIED))))
    both = found.join(true, ["key", "caption_index"], join_type="inner")
    right = pc.and_(pc.equal(both["language"], both["truth"]), pc.or_kleene(pc.is_null(both["drop"]), pc.equal(both["drop"], "no_entry")))
    sums = both.append_column("right", right.cast(pa.int64())).group_by("truth").aggregate([("right", "sum"), ("right", "count")])
    values = zip(sums["truth"].to_pylist(), sums["right_count"].to_pylist(), sums["right_sum"].to_pylist(), strict=True)
    return {code: (number, total / number) for code, number, total in sorted(values)}


# --- the table ----------------------------------------------------------------------------------------------------------

# heading, key in the row of a language, format
COLUMNS = (
    ("captions", "captions", ",d"),
    ("id agrees", "id_agreement", ".1%"),
    ("matched", "matched", ",d"),
    ("matches", "matches", ",d"),
    ("tail share", "tail_share", ".1%"),
    ("threshold", "threshold", ",d"),
    ("head entries", "head_entries", ",d"),
    ("captions kept\n(expected)", "expected_captions", ",.0f"),
    ("captions kept\n(drawn)", "drawn_captions", ",d"),
    ("pairs an epoch\n(expected)", "expected_pairs", ",.0f"),
    ("pairs an epoch\n(drawn)", "drawn_pairs", ",d"),
    ("captions\npacked", "packed_captions", ",d"),
)
ESSENTIAL = ("captions", "matched", "threshold", "expected_pairs", "drawn_pairs")
WIDE = 150  # characters of a terminal that has room for all columns


def print_table(report: Mapping[str, Any], max_rows: int = 40) -> None:
    """The languages with the most captions, and the sums."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    rows = sorted(report["languages"].items(), key=lambda item: (-item[1]["captions"], item[0]))
    columns = [column for column in COLUMNS if any(column[1] in row for _, row in rows)]
    columns = [column for column in columns if console.width >= WIDE or column[1] in ESSENTIAL]
    table = Table(title=_title(report), show_footer=True, title_justify="left")
    table.add_column("language", "all")
    for heading, key, spec in columns:
        table.add_column(heading, _cell(report["total"].get(key), spec), justify="right")
    for code, row in rows[:max_rows]:
        table.add_row(f"{code} {row['name']}", *(_cell(row.get(key), spec) for _, key, spec in columns))
    console.print(table)
    if len(rows) > max_rows:
        console.print(f"{len(rows) - max_rows} more languages in report.json.", highlight=False)
    for line in footer(report):
        console.print(line, highlight=False)


def _cell(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)


def _title(report: Mapping[str, Any]) -> str:
    threshold = report["english_threshold"]
    origin = "as given" if threshold is None else f"English threshold {threshold:,}"
    return f"Curation: tail share p = {report['tail_share']:.2%} of the matches, {origin} ({report['english_rule']})"


def footer(report: Mapping[str, Any]) -> list[str]:
    """The ways of captions and pairs as sums, what balancing keeps, the drops, and advice where the threshold is far from the published runs'."""
    total, draws = report["total"], report["draws"]
    lines = [f"{name.capitalize()}: {_sum(report['ways'][name])}." for name in ("captions", "pairs")]
    drawn = (
        f"{total['drawn_pairs']:,} drawn (seed {draws['seed']}, epoch {draws['epoch']}; standard deviation {total['pairs_deviation']:,.0f})"
    )
    lines += [f"Kept in an epoch: {total['expected_pairs']:,.0f} pairs expected, {drawn}."]
    lines += [f"Drops: {', '.join(f'{reason} {number:,}' for reason, number in report['drops'].items()) or 'none'}."]
    return lines + [advice for advice in [threshold_advice(report)] if advice]


def _sum(way: Way) -> str:
    """ "10 in the pool - 1 no_entry = 9 matched" """
    words = [f"{number:,} {what}" for what, number in way[:1]]
    words += [f"- {-number:,} {what}" if number < 0 else f"= {number:,} {what}" for what, number in way[1:]]
    return " ".join(words)


def threshold_advice(report: Mapping[str, Any]) -> str:
    """What to set where the tail holds far more or less of the matches than in the published runs; "" where it is as usual."""
    share, usual = report["tail_share"], report["usual_english_threshold"]
    if 0.02 <= share <= 0.2 or usual is None or usual == report["english_threshold"]:
        return ""
    effect = "less" if share > 0.2 else "more"
    return (
        f"The tail holds {share:.1%} of the English matches, in the published runs about 6 %: balancing thins out {effect} than theirs. "
        f"--english_threshold {usual} would give 6 % here."
    )
