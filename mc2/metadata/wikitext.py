"""Plain text of wiki markup: what a reader of the article reads as prose.

mwparserfromhell is the parser, but it reads 0.3 MB/s where templates abound. So what is thrown away in any case (templates, tables, references, comments) and what
can be read in one way only (plain links, bold, headings) goes first, by linear patterns; the parser gets the lines that still have markup. A test compares both.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_NO_PROSE = (
    "ref gallery math chem ce nowiki pre source syntaxhighlight code score timeline imagemap hiero templatedata templatestyles graph mapframe maplink style"
    " inputbox categorytree indicator section references"
)
_NO_PROSE_ELEMENT = re.compile(rf"<({'|'.join(_NO_PROSE.split())})\b(?:[^<>]*/>|[^<>]*>.*?</\1\s*>)", re.DOTALL | re.IGNORECASE)
_TEMPLATE = re.compile(r"\{\{[^{}]*+\}\}|\{\{\{[^{}]*+\}\}\}")  # innermost; the second is a parameter
_TABLE = re.compile(r"\{\|(?>[^{|]++|\{(?!\|)|\|(?!\}))*+\|\}")  # innermost
_HEADING = re.compile(r"^=+[^\n]*=+[ \t]*$", re.MULTILINE)
_BOLD = re.compile(r"''+")
_LINK = re.compile(r"\[\[(?:[^\[\]|:{}<>\n]*\|)?([^\[\]|{}<>\n]*)\]\]")
_VARIANT = re.compile(r"-\{([^{}|:;]*)\}-|-\{[^{}]*\}-")  # Chinese, Serbian: one form stays, a choice of forms goes
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_MARKUP = re.compile(r"[\[{<]")
_FILE_NAME = re.compile(r"\.(?:jpe?g|png|svg|gif|tiff?|webp|xcf|og[gav]|opus|flac|wav|mp3|mid|webm|pdf|djvu)\s*$", re.IGNORECASE)
_MAX_DEPTH = 50  # of templates in templates; what is deeper is no article


def plain_text(markup: str, hidden: frozenset[str]) -> str:
    """The prose of an article, one line for each line of the source.

    Left out: templates, tables, references, comments, headings, galleries, formulas, code, files with their captions, categories, links to other languages.

    Args:
        markup: Source of the page.
        hidden: Lower-case prefixes of links that show nothing in the text: `hidden_prefixes`.
    """
    text = _NO_PROSE_ELEMENT.sub(" ", _COMMENT.sub("", markup))
    for pattern in (_TEMPLATE, _TABLE):
        for _ in range(_MAX_DEPTH):
            text, found = pattern.subn("", text)
            if not found:
                break
    text = _BOLD.sub("", _HEADING.sub("", _VARIANT.sub(r"\1", text)))
    text = _LINK.sub(lambda link: link[0] if ":" in link[0].partition("|")[0] else link[1], text)
    lines = (_parsed(line, hidden) if _MARKUP.search(line) else line for line in _MAGIC_WORD.sub("", text).split("\n"))
    return html.unescape("\n".join(lines))


def hidden_prefixes(names: Iterable[str], codes: Iterable[str]) -> frozenset[str]:
    """Prefixes of links that show nothing: files and categories, in English and as the wiki calls them, and the codes of other Wikipedias."""
    return frozenset(prefix.replace("_", " ").strip().lower() for prefix in ("file", "image", "media", "category", *names, *codes)) - {""}


def _parsed(line: str, hidden: frozenset[str]) -> str:
    import mwparserfromhell

    code: Any = mwparserfromhell.parse(line, skip_style_tags=True)
    for link in code.filter_wikilinks():
        prefix, colon, rest = str(link.title).partition(":")
        if colon and (prefix.replace("_", " ").strip().lower() in hidden or _FILE_NAME.search(rest)):
            with suppress(ValueError):  # it was inside of another that is gone
                code.remove(link)
    return str(code.strip_code(normalize=False, collapse=False))
