"""Plain text of wiki markup: what a reader of the article reads as prose.

mwparserfromhell is the parser, but it reads 0.3 MB/s where templates abound: 80 core hours for the English Wikipedia. So what is thrown away in any case (templates,
tables, references, comments) and what can be read in one way only (whole links, tags, bold, headings) goes first, by linear patterns; the parser gets the lines
that still have markup. A test compares both.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
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
_BREAK = re.compile(r"<br\b[^<>]*>", re.IGNORECASE)
_ANY_TAG = re.compile(r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>", re.IGNORECASE)
_LINK = re.compile(r"\[\[([^\[\]|{}<>\n]*+)(?:\|([^\[\]{}<>\n]*+))?\]\]")  # innermost: target, label
_WEB_LINK = re.compile(r"\[(?:https?:)?//[^\s\[\]<>]+[ \t]*([^\[\]\n]*)\]")
_VARIANT = re.compile(r"-\{([^{}|:;]*)\}-|-\{[^{}]*\}-")  # Chinese, Serbian: one form stays, a choice of forms goes
_MAGIC_WORD = re.compile(r"__[A-Z]+__")
_MARKUP = re.compile(r"\[\[|\{\{|<[a-z/]", re.IGNORECASE)
_FILE_NAME = re.compile(r"\.(?:jpe?g|png|svg|gif|tiff?|webp|xcf|og[gav]|opus|flac|wav|mp3|mid|webm|pdf|djvu)\s*$", re.IGNORECASE)
_MAX_DEPTH = 50  # of templates in templates, of links in captions; what is deeper is no article


def plain_text(markup: str, hidden: frozenset[str]) -> str:
    """The prose of an article, one line for each line of the source.

    Left out: templates, tables, references, comments, headings, galleries, formulas, code, files with their captions, categories, links to other languages.

    Args:
        markup: Source of the page.
        hidden: Lower-case prefixes of links that show nothing in the text: `hidden_prefixes`.
    """
    text = _NO_PROSE_ELEMENT.sub(" ", _COMMENT.sub("", markup))
    text = _innermost_first(_TABLE, "", _innermost_first(_TEMPLATE, "", text))
    text = _BOLD.sub("", _HEADING.sub("", _VARIANT.sub(r"\1", text)))
    text = _WEB_LINK.sub(r"\1", _ANY_TAG.sub("", _BREAK.sub("\n", text)))
    text = _innermost_first(_LINK, lambda link: "" if _is_hidden(link[1], hidden) else link[1] if link[2] is None else link[2], text)
    lines = (_parsed(line, hidden) if _MARKUP.search(line) else line for line in _MAGIC_WORD.sub("", text).split("\n"))
    return html.unescape("\n".join(lines))


def _innermost_first(pattern: re.Pattern[str], replacement: str | Callable[[re.Match[str]], str], text: str) -> str:
    for _ in range(_MAX_DEPTH):
        text, found = pattern.subn(replacement, text)
        if not found:
            break
    return text


def _is_hidden(target: str, hidden: frozenset[str]) -> bool:
    prefix, colon, rest = target.partition(":")
    return bool(colon) and (prefix.replace("_", " ").strip().lower() in hidden or _FILE_NAME.search(rest) is not None)


def hidden_prefixes(names: Iterable[str], codes: Iterable[str]) -> frozenset[str]:
    """Prefixes of links that show nothing: files and categories, in English and as the wiki calls them, and the codes of other Wikipedias."""
    return frozenset(prefix.replace("_", " ").strip().lower() for prefix in ("file", "image", "media", "category", *names, *codes)) - {""}


def _parsed(line: str, hidden: frozenset[str]) -> str:
    import mwparserfromhell

    code: Any = mwparserfromhell.parse(line, skip_style_tags=True)
    for link in code.filter_wikilinks():
        if _is_hidden(str(link.title), hidden):
            with suppress(ValueError):  # it was inside of another that is gone
                code.remove(link)
    return str(code.strip_code(normalize=False, collapse=False))
