"""What a check has found: one line each with ok, warn or fail, and the cure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape

Level = Literal["ok", "warn", "fail"]
STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True)
class Finding:
    """`about`: what was looked at; `text`: what was found, and what to do unless it is ok."""

    level: Level
    about: str
    text: str


def print_findings(findings: Sequence[Finding]) -> None:
    """A line for each."""
    console = Console(soft_wrap=True, highlight=False)
    for finding in findings:
        style = STYLES[finding.level]
        console.print(f"[{style}]{finding.level:<4}[/{style}] {escape(finding.about)}: {escape(finding.text)}")
