"""Pieces of self-contained pages: files inside the page, text with its language and direction."""

from __future__ import annotations

import base64

import langcodes

from mc2.benchmarks.language_groups import script_code

RIGHT_TO_LEFT = frozenset({"Adlm", "Arab", "Aran", "Hebr", "Mand", "Mend", "Nkoo", "Rohg", "Samr", "Syrc", "Thaa"})


def direction(code: str) -> str:
    """ "rtl" for a language that is written from the right, else "ltr"."""
    return "rtl" if script_code(code) in RIGHT_TO_LEFT else "ltr"


def marked(code: str, content: str) -> str:
    """Content in a language, with its direction."""
    return f'<bdi lang="{langcodes.standardize_tag(code)}" dir="{direction(code)}">{content}</bdi>'


def data_url(data: bytes, kind: str) -> str:
    """A file inside the page."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
