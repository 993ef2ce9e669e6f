"""The one command `mc2`. Only the standard library is imported here: a subcommand's module, with torch behind it, is imported when it is chosen."""

from __future__ import annotations

import difflib
import importlib
import os
import sys

# subcommand -> (module with `main(argv) -> int`, one line of help)
SUBCOMMANDS = {
    "quickstart": ("mc2.quickstart.run", "the whole flow on real data in minutes; ends with a report to look at"),
    "metadata": ("mc2.metadata.commands", "build | join | show: entry lists per language"),
    "curate": (
        "mc2.curation.commands",
        "collect | match | hash | duplicates | balance | pack | urls | report | verify | run: from a raw pool to balanced shards",
    ),
    "tokenizer": ("mc2.interchange.tokenizer_commands", "train | show | trim: SentencePiece pieces, coverage and fertility per language"),
    "fit": ("mc2.training.commands", "train from YAML (LightningCLI)"),
    "sweep": ("mc2.sweep.commands", "many experiments with several seeds; tables with confidence intervals"),
    "validate": ("mc2.training.commands", "validation loss and benchmarks of a checkpoint"),
    "test": ("mc2.training.commands", "all benchmarks of a checkpoint"),
    "compare": ("mc2.benchmarks.commands", "what changed between two evaluations, with significance"),
    "predict": ("mc2.training.commands", "rank given texts for given image files"),
    "plan": ("mc2.training.plan", "what a run costs before it starts: parameters, FLOPs, memory of a GPU, days"),
    "doctor": ("mc2.training.doctor", "whether this machine, or the nodes of a job together, are fit for a run"),
    "import": ("mc2.interchange.commands", "model of open_clip, transformers or mini_clip -> model folder that mc2.load reads"),
    "export": ("mc2.interchange.commands", "checkpoint or model folder -> model folder, open_clip, transformers, timm, onnx"),
    "bench": (
        "mc2.bench.commands",
        "match | automata | language-id | evaluate | loader | loss | start | step | telemetry: speed, memory, accuracy on this machine",
    ),
}

USAGE = """usage: mc2 [--debug] SUBCOMMAND ...

CLIP for the whole world's languages: the Meta CLIP 2 recipe as a PyTorch Lightning kit.

{table}

`mc2 SUBCOMMAND --help` explains every option. `--debug` shows the trace of an error. Begin with `mc2 quickstart`."""


def usage() -> str:
    """The help text, one line for each subcommand."""
    return USAGE.format(table="\n".join(f"  {name:<12}{text}" for name, (_, text) in SUBCOMMANDS.items()))


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand. Returns the exit status: 0 only if the work is done, 1 for an error, 2 for wrong usage, 130 after Ctrl-C."""
    if argv is None:
        if "--debug" in sys.argv:  # an environment variable, because processes started with our command line must see it too
            sys.argv.remove("--debug")
            os.environ["MC2_DEBUG"] = "1"
        argv = sys.argv[1:]
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from mc2 import __version__

        print(f"mc2 {__version__}")
        return 0
    if argv[0] not in SUBCOMMANDS:
        near = difflib.get_close_matches(argv[0], SUBCOMMANDS, n=1)
        print(f"mc2: unknown subcommand {argv[0]!r}; {f'did you mean {near[0]!r}?' if near else 'see `mc2 --help`'}", file=sys.stderr)
        return 2
    return run(argv)


def run(argv: list[str]) -> int:
    """Import and call the subcommand's module; errors of the user become one readable line."""
    if argv[0] == "fit" and "MC2_REQUEUE" in os.environ:  # a job that comes back
        importlib.import_module("mc2.training.early_signals").keep()
    try:
        module = importlib.import_module(SUBCOMMANDS[argv[0]][0])
        status: int = module.main(argv)
        return status
    except KeyboardInterrupt:
        print("\nmc2: interrupted; the same line again goes on from here", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("MC2_DEBUG"):
            raise
        from mc2.usage import UsageError

        print(f"mc2 {argv[0]}{place()}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def place() -> str:
    """ " on node2 (rank 1)" in one of several tasks of SLURM, which share a log."""
    several = os.environ.get("SLURM_NTASKS", "1") != "1" and "SLURM_STEP_ID" in os.environ
    return f" on {os.environ.get('SLURMD_NODENAME')} (rank {os.environ.get('SLURM_PROCID')})" if several else ""
