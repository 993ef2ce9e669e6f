"""The command itself: help, wrong words, errors in one line, exit status."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from mc2.cli import SUBCOMMANDS, main


def test_help_lists_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(name in output for name in SUBCOMMANDS)


def test_help_is_quick() -> None:
    subprocess.run([sys.executable, "-m", "mc2", "--help"], check=True, capture_output=True)  # writes the bytecode
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        subprocess.run([sys.executable, "-m", "mc2", "--help"], check=True, capture_output=True)
        seconds.append(time.monotonic() - start)
    assert min(seconds) < 0.7


def test_no_subcommand_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: mc2" in capsys.readouterr().out


def test_a_misspelt_subcommand_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quickstrat"]) == 2
    assert "unknown subcommand 'quickstrat'; did you mean 'quickstart'?" in capsys.readouterr().err


def test_an_error_is_one_line_and_debug_shows_the_trace() -> None:
    command = [sys.executable, "-m", "mc2", "metadata", "build", "--out", "/proc/nowhere"]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    assert plain.returncode == 1
    assert plain.stderr.startswith("mc2 metadata: ")
    assert plain.stderr.count("\n") == 1
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert "Traceback" in debug.stderr
