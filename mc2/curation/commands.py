"""`mc2 curate collect | match | hash | duplicates | balance | pack | urls | report | verify | run`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mc2.curation.balance import EnglishRule
from mc2.curation.filters import PairFilter
from mc2.curation.image_hash import DctEncoder, ImageEncoder
from mc2.curation.language_id import BEST, LanguageSettings
from mc2.curation.match import MatchRule
from mc2.curation.pack_plan import Balancing
from mc2.curation.pool_columns import BY_NAME, PoolColumns
from mc2.engines.engine import Engine
from mc2.engines.options import make_engine

ALREADY = "balanced already: train on it without data.balance, which would thin the captions out again"


def collect(images: Path, out: Path, captions: Path | None = None, shard_pairs: int = 1000) -> None:
    """A pool of the image files in a folder (jpg, png, webp) that have captions.

    Args:
        images: Folder with the images, at any depth.
        out: Folder to write: tars as img2dataset makes them.
        captions: Table (.csv, .tsv, .jsonl) with a row for each caption: file_name (path in the folder, or the name alone), caption, and perhaps language. By
            default metadata.csv or captions.csv (.tsv, .jsonl) in the folder; without these the text files beside the images, photo.txt for photo.jpg, a
            caption a line.
        shard_pairs: Pairs of a tar.
    """
    from mc2.curation.collect import run_collect

    results = run_collect(images, out, captions, shard_pairs)
    print(
        f"{out}: {results['pairs']:,} pairs in {results['shards']:,} tars; left out: {results['left_out'] or 'nothing'}. "
        f"Next: mc2 curate run --pool {out} --metadata ... --out ..."
    )


def match(
    pool: Path,
    metadata: Path,
    out: Path,
    language: LanguageSettings = BEST,
    max_characters: int = 10_000,
    rule: MatchRule = "mc2",
    columns: PoolColumns = BY_NAME,
    **engine_options: Any,
) -> None:
    """Language and metadata entries of every caption.

    Args:
        pool: Folder of shards of one kind: img2dataset tars (jpg + txt + json), parquet files (URL or key, captions, perhaps images), or Common Crawl's
            *.warc.wat.gz (needs `pip install 'mc2[wat]'`).
        metadata: Folder of `mc2 metadata build`.
        out: Folder to write; the same line again goes on where it stopped.
        language: How the language of a caption is found.
        max_characters: Longer captions are dropped.
        rule: "mc2", or "published" for the published rule, under which kana hardly ever match.
        columns: Names of the columns of parquet files, where they do not tell by themselves what they are.
    """
    from mc2.curation.match_stage import MatchSettings, run_match

    results = run_match(
        pool, metadata, out, MatchSettings(language, max_characters, rule), make_engine(out / ".logs", **engine_options), columns
    )
    print(
        f"{out}: matched {results['shards']:,} shards; drops: {results['drops']}. Next: mc2 curate balance --matched {out} --metadata {metadata} --out ..."
    )


def hash_images(
    pool: Path,
    out: Path,
    encoder: Callable[[], ImageEncoder] | None = DctEncoder,
    seed: int = 0,
    max_pixels: int = 64_000_000,
    columns: PoolColumns = BY_NAME,
    **engine_options: Any,
) -> None:
    """Hashes of all images, by content and by look.

    Args:
        pool: Folder of the pool, or a folder with the image files of a benchmark at any depth.
        out: Folder to write; the same line again goes on where it stopped.
        encoder: What turns an image into the embedding whose hash is compared. The default needs no weights and finds copies that were re-encoded or
            resized. `mc2.interchange.image_encoder.ClipEncoder` takes a model folder. `null`: contents alone, nothing is decoded.
        seed: Draws the directions that the embedding is projected on.
        max_pixels: Images with more pixels are not decoded.
        columns: Names of the columns of parquet files, see `mc2 curate match --help`.
    """
    from mc2.curation.hash_stage import HashSettings, run_hash

    results = run_hash(pool, out, encoder, HashSettings(seed, max_pixels), make_engine(out / ".logs", **engine_options), columns)
    print(
        f"{out}: hashed {results['images']:,} images; not decoded: {results['drops']}. Next: mc2 curate duplicates --hashes {out} --out ..."
    )


def duplicates(hashes: Path, out: Path, benchmarks: list[Path] | None = None, radius: int = 3, matched: Path | None = None) -> None:
    """Which pairs leave because their image is in the pool already, or in a benchmark.

    Args:
        hashes: Folder of `mc2 curate hash` of the pool.
        out: Folder to write.
        benchmarks: Folders of `mc2 curate hash` of benchmarks, made with the same encoder and seed.
        radius: Images are near duplicates if at most this many of the 64 bits of their hashes differ, 0 to 8.
        matched: Folder of `mc2 curate match`: pairs without a matched caption take no part then, so that the image that stays can be packed.
    """
    from mc2.curation.duplicates_stage import run_duplicates

    results = run_duplicates(hashes, out, benchmarks or [], radius, matched)
    print(f"{out}: of {results['images']:,} images leave: {results['drops']}; overlap with benchmarks: {results['benchmark_overlap']}")


def balance(
    matched: Path,
    metadata: Path,
    out: Path,
    english_threshold: int | None = None,
    english_rule: EnglishRule = "paper",
    tail_share: float | None = None,
    seed: int = 0,
    epoch: int = 0,
    duplicates: Path | None = None,
    **engine_options: Any,
) -> None:
    """Counts, thresholds and probabilities of the entries of all languages.

    Args:
        matched: Folder of `mc2 curate match`.
        metadata: Folder of `mc2 metadata build`.
        out: Folder to write; `balance.json` in it shows the arithmetic.
        english_threshold: Captions an English entry needs to belong to the head. Published and the default: 170,000 for a pool of 2.5 billion pairs; 20,000
            for 400 million. A small pool needs a small one: the tail should hold 5 to 10 % of the matches.
        english_rule: "paper": English gets its threshold from the tail share as all languages do. "published_code": English keeps `english_threshold`.
            "one_threshold": so do all languages, as in the published ablation.
        tail_share: Share of the matches that belongs to the tail, for pools without English; by default that of English at `english_threshold`. With the
            rule "paper" only one of the two can be given.
        seed: Keys the draws that are counted beside what is expected; nothing else depends on it.
        epoch: Keys them too: the epoch of training that would draw the same.
        duplicates: Folder of `mc2 curate duplicates`: the pairs in it do not count. `mc2 curate pack` needs the same.
    """
    from mc2.curation.balance_stage import Draws, run_balance

    engine = make_engine(out / ".logs", **engine_options)
    value = run_balance(matched, metadata, out, english_threshold, english_rule, tail_share, engine, Draws(seed, epoch), duplicates)
    total = value["total"]
    print(
        f"{out}: tail share {value['tail_share']:.2%}; {total['matched']:,} matched captions, {total['expected_captions']:,.0f} expected to be kept. "
        f"Next: mc2 curate report --balance {out} --out ..."
    )


def pack(
    pool: Path,
    matched: Path,
    balance: Path,
    out: Path,
    balanced: Balancing = "online",
    seed: int = 0,
    epoch: int = 0,
    max_pixels: int = 64_000_000,
    shard_pairs: int = 10_000,
    duplicates: Path | None = None,
    filters: list[Callable[[], PairFilter]] | None = None,
    **engine_options: Any,
) -> None:
    """Training shards with the captions that matched.

    Args:
        pool: The pool that was matched.
        matched: Folder of `mc2 curate match`.
        balance: Folder of `mc2 curate balance`.
        out: Folder to write: tars, indices, manifest.json.
        balanced: "online": all matched captions are packed and the loader balances afresh each epoch. "offline": balanced now, once, into smaller shards.
        seed: Keys the draws of offline balancing.
        epoch: Keys the draws of offline balancing: the loader's choice in this epoch.
        max_pixels: Images with more pixels are dropped.
        shard_pairs: Pairs of a shard; small shards of the pool are joined, large ones split. A run needs a shard for each worker of each rank.
        duplicates: Folder of `mc2 curate duplicates`: the pairs in it are dropped. The same as for `mc2 curate balance`.
        filters: Classes that look at the image and the captions of each pair and drop it, or replace its image (`mc2.curation.faces.BlurFaces`).
    """
    from mc2.curation.pack_plan import PackSettings
    from mc2.curation.pack_stage import run_pack

    manifest = run_pack(
        pool,
        matched,
        balance,
        out,
        PackSettings(balanced, seed, epoch, max_pixels, shard_pairs),
        make_engine(out / ".logs", **engine_options),
        duplicates,
        filters or [],
    )
    print(f"{out}: {manifest.num_pairs:,} pairs in {len(manifest.shards):,} shards; drops: {dict(manifest.drops)}")
    if balanced == "offline":
        print(f"{out}: {ALREADY}")


def urls(
    pool: Path,
    matched: Path,
    balance: Path,
    out: Path,
    balanced: Balancing = "online",
    seed: int = 0,
    epoch: int = 0,
    **engine_options: Any,
) -> None:
    """The list of URLs that img2dataset takes, of the pairs that have a matched caption: for pools without images.

    The tars that img2dataset makes of it are a pool with all captions: `mc2 curate run --pool TARS` matches, balances and packs what could be downloaded.
    Those of an offline list are balanced already, and can be trained as they are.

    Args:
        pool: The pool that was matched.
        matched: Folder of `mc2 curate match`.
        balance: Folder of `mc2 curate balance`.
        out: Folder to write: a parquet for each shard of the pool, with url, caption, captions, languages, hint, pair_key. Then: img2dataset --url_list OUT
            --input_format parquet --url_col url --caption_col caption --save_additional_columns '["captions","hint","pair_key"]'
            --output_format webdataset --output_folder TARS --image_size 512 --resize_mode keep_ratio --resize_only_if_bigger True
        balanced: "online": all pairs with a matched caption, and all of these captions. "offline": only the pairs that balancing draws, with the drawn caption.
        seed: Keys the draws of offline balancing.
        epoch: Keys the draws of offline balancing.
    """
    from mc2.curation.urls_stage import img2dataset_command, run_urls

    results = run_urls(pool, matched, balance, out, balanced, seed, epoch, make_engine(out / ".logs", **engine_options))
    print(
        f"{out}: {results['pairs']:,} URLs with {results['captions']:,} captions; drops: {results['drops']}. Next: {img2dataset_command(out, Path('TARS'))}"
    )


def report(balance: Path, out: Path, matched: Path | None = None, truth: Path | None = None, shards: Path | None = None) -> None:
    """A table, report.json and report.png of what curation did.

    Args:
        balance: Folder of `mc2 curate balance`.
        out: Folder to write.
        matched: Folder of `mc2 curate match`; needed with `truth`.
        truth: Parquet (key, caption_index, language) with the true language of captions, to see how often the language identification agrees.
        shards: Folder of `mc2 curate pack`, to see what was packed.
    """
    from mc2.curation.report import write_report

    write_report(balance, out, matched, truth, shards)
    print(f"{out}: open report.png")


def verify(shards: Path, images: bool = False, **engine_options: Any) -> int:
    """Check a folder of training shards, ours or img2dataset's: prints what is wrong, one line each with the cure; status 1 if anything is.

    Args:
        shards: Folder of `mc2 curate pack`, or of plain tars.
        images: Decode every image too.
    """
    from mc2.curation.verify import verify_shards

    problems, summary = verify_shards(shards, images, make_engine(shards / ".logs", **engine_options))
    for problem in problems:
        print(problem)
    print(f"{summary}: {f'{len(problems)} problems' if problems else 'nothing wrong'}")
    return 1 if problems else 0


def run(
    pool: Path,
    metadata: Path,
    out: Path,
    english_threshold: int | None = None,
    english_rule: EnglishRule = "paper",
    tail_share: float | None = None,
    balanced: Balancing = "online",
    language: LanguageSettings = BEST,
    rule: MatchRule = "mc2",
    seed: int = 0,
    shard_pairs: int = 10_000,
    truth: Path | None = None,
    columns: PoolColumns = BY_NAME,
    drop_duplicates: bool = False,
    benchmarks: list[Path] | None = None,
    encoder: Callable[[], ImageEncoder] | None = DctEncoder,
    radius: int = 3,
    filters: list[Callable[[], PairFilter]] | None = None,
    **engine_options: Any,
) -> None:
    """All stages, into matched/, balance/, shards/ and curation/ of one folder; for a pool without images urls/ in the place of shards/.

    If duplicates are dropped, there are hashes/, benchmarks/ and duplicates/ too.

    Args:
        pool: Folder of shards of one kind: img2dataset tars (jpg + txt + json), parquet files (URL or key, captions, perhaps images), or Common Crawl's
            *.warc.wat.gz (needs `pip install 'mc2[wat]'`).
        metadata: Folder of `mc2 metadata build`.
        out: Folder to write; the same line again goes on where it stopped.
        english_threshold: Captions an English entry needs to belong to the head (published and the default: 170,000); small for a small pool.
        english_rule: "paper", "published_code" or "one_threshold", see `mc2 curate balance --help`.
        tail_share: Share of the matches that belongs to the tail, for pools without English.
        balanced: "online" or "offline", see `mc2 curate pack --help`.
        language: How the language of a caption is found.
        rule: "mc2" or "published", see `mc2 curate match --help`.
        seed: Keys the draws of offline balancing.
        shard_pairs: Pairs of a training shard.
        truth: Parquet with the true language of captions, for the report.
        columns: Names of the columns of parquet files, see `mc2 curate match --help`.
        drop_duplicates: Drop pairs whose image is in the pool already, or in one of the benchmarks; before balancing.
        benchmarks: Folders with the images of benchmarks, files or tars.
        encoder: See `mc2 curate hash --help`.
        radius: See `mc2 curate duplicates --help`.
        filters: See `mc2 curate pack --help`.
    """
    from mc2.curation.balance import english_threshold_in_force
    from mc2.curation.balance_stage import Draws, run_balance
    from mc2.curation.hamming import check_radius
    from mc2.curation.hash_stage import open_images
    from mc2.curation.match_stage import MatchSettings, run_match
    from mc2.curation.pack_plan import PackSettings
    from mc2.curation.pack_stage import run_pack
    from mc2.curation.pool import pool_has_images, pool_shards
    from mc2.curation.report import write_report
    from mc2.curation.urls_stage import img2dataset_command, run_urls

    if benchmarks and not drop_duplicates:
        raise ValueError("curate run: found benchmarks, but duplicates are not dropped; give --drop_duplicates true as well")
    has_images = pool_has_images(pool_shards(pool), columns)
    if (drop_duplicates or filters) and not has_images:
        raise ValueError(
            f"{pool}: found no images in the pool, need them for duplicates and filters; leave these out until they are downloaded"
        )
    check_radius(radius)
    english_threshold_in_force(english_threshold, english_rule, tail_share)
    if drop_duplicates:  # what is wrong with a folder or a filter is found now, not after hours
        open_images(pool, columns)
    for folder in benchmarks or []:
        open_images(folder, BY_NAME)
    for factory in filters or []:
        factory()
    engine, matched, shards = make_engine(out / ".logs", **engine_options), out / "matched", out / "shards"
    run_match(pool, metadata, matched, MatchSettings(language, rule=rule), engine, columns)
    leave = _find_duplicates(pool, out, benchmarks or [], encoder, radius, engine, columns) if drop_duplicates else None
    run_balance(matched, metadata, out / "balance", english_threshold, english_rule, tail_share, engine, Draws(seed), leave)
    if has_images:
        settings = PackSettings(balanced, seed, shard_pairs=shard_pairs)
        run_pack(pool, matched, out / "balance", shards, settings, engine, leave, filters or [])
    else:
        listed = run_urls(pool, matched, out / "balance", out / "urls", balanced, seed, engine=engine)
    write_report(out / "balance", out / "curation", matched, truth, shards if has_images else None)
    print(f"{out}: open curation/report.png")
    offline = balanced == "offline"
    if has_images:
        print(f"{out / 'shards'}: {ALREADY}" if offline else f"{out}: train on shards/ with balance/")
    else:
        without = f" ({listed['drops']['no_url']:,} pairs of the pool have none)" if listed["drops"].get("no_url") else ""
        print(
            f"{out}: the pool has no images, so {listed['pairs']:,} URLs{without} are in urls/. {'Download them' if offline else 'Download them, then curate the tars'}:"
        )
        print(f"  {img2dataset_command(out / 'urls', Path('TARS'))}")
        print(f"TARS: {ALREADY}" if offline else f"  mc2 curate run --pool TARS --metadata {metadata} --out ...")


def _find_duplicates(
    pool: Path,
    out: Path,
    benchmarks: list[Path],
    encoder: Callable[[], ImageEncoder] | None,
    radius: int,
    engine: Engine,
    columns: PoolColumns,
) -> Path:
    """Hash the pool and the benchmarks, and compare. Returns the folder of the pairs that leave."""
    from mc2.curation.duplicates_stage import run_duplicates
    from mc2.curation.hash_stage import run_hash

    folders = {out / "benchmarks" / folder.name: folder for folder in benchmarks}
    if len(folders) < len(benchmarks):
        raise ValueError(f"curate run: found benchmarks {[str(folder) for folder in benchmarks]}, need folders with different names")
    run_hash(pool, out / "hashes", encoder, engine=engine, columns=columns)
    for hashes, folder in folders.items():
        run_hash(folder, hashes, encoder, engine=engine)
    run_duplicates(out / "hashes", out / "duplicates", list(folders), radius, out / "matched")
    return out / "duplicates"


def main(argv: list[str]) -> int:
    """Run `mc2 curate ...`; argv begins with "curate"."""
    from mc2.usage import call

    functions: dict[str, Callable[..., Any]] = {
        "collect": collect,
        "match": match,
        "hash": hash_images,
        "duplicates": duplicates,
        "balance": balance,
        "pack": pack,
        "urls": urls,
        "report": report,
        "verify": verify,
        "run": run,
    }
    status: int | None = call(functions, argv[1:], "mc2 curate", "From a raw pool to balanced training shards.")
    return status or 0
