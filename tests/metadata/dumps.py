"""Small Wikipedias in the official layout, for tests: XML in one bz2 stream or many, with all that is no prose around the text."""

from __future__ import annotations

import bz2
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

# File and category as the wikis call them
NAMES = {"de": ("Datei", "Kategorie"), "th": ("ไฟล์", "หมวดหมู่"), "ja": ("ファイル", "Category"), "zh": ("File", "Category")}

PAGE = """  <page>
    <title>{title}</title>
    <ns>{ns}</ns>
    <id>{number}</id>{redirect}
    <revision>
      <id>{number}</id>
      <timestamp>2024-05-01T00:00:00Z</timestamp>
      <contributor><username>A</username><id>1</id></contributor>
      <model>{model}</model>
      <format>text/x-wiki</format>
      <text bytes="1" xml:space="preserve">{text}</text>
      <sha1>x</sha1>
    </revision>
  </page>
"""


def head(code: str) -> str:
    """The beginning of a dump, with the names of the namespaces."""
    file, category = NAMES.get(code, ("File", "Category"))
    return (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="{code}">\n  <siteinfo>\n    <dbname>{code}wiki</dbname>\n'
        f'    <namespaces>\n      <namespace key="0" case="first-letter" />\n      <namespace key="6" case="first-letter">{file}</namespace>\n'
        f'      <namespace key="14" case="first-letter">{category}</namespace>\n    </namespaces>\n  </siteinfo>\n'
    )


def page(number: int, title: str, text: str, ns: int = 0, redirect: bool = False, model: str = "wikitext") -> str:
    return PAGE.format(
        title=escape(title),
        ns=ns,
        number=number,
        redirect='\n    <redirect title="X" />' if redirect else "",
        model=model,
        text=escape(text),
    )


def dressed(sentences: Sequence[str], file: str, category: str) -> str:
    """Wiki markup around sentences: nothing of what is added is prose."""
    lines = [
        "{{Infobox\n| name = NOPROSE\n| image = {{multiple image|caption1=[[NOPROSE]]}}\n}}",
        f"[[{file}:A.jpg|mini|NOPROSE with a [[link|NOPROSE]]]]",
        "== NOPROSE ==",
        '{| class="wikitable"\n! NOPROSE\n|-\n| NOPROSE || [[NOPROSE]]\n|}',
        *(f"'''{sentence}'''<ref name=\"a\">{{{{cite|title=NOPROSE}}}}</ref><!-- NOPROSE --><ref name=a />" for sentence in sentences),
        "<gallery>\nA.jpg|NOPROSE\n</gallery>",
        f"[[{category}:NOPROSE]]\n[[fr:NOPROSE]]\n__NOTOC__",
    ]
    return "\n".join(lines)


def pages(code: str, articles: Mapping[str, Sequence[str]]) -> list[str]:
    """Articles in markup, and a redirect, a template and a page of data among them."""
    file, category = NAMES.get(code, ("File", "Category"))
    found = [page(n, title, dressed(sentences, file, category)) for n, (title, sentences) in enumerate(articles.items(), 1)]
    found.insert(1, page(1001, "R", "#REDIRECT [[NOPROSE]]", redirect=True))
    found.insert(2, page(1002, "Template:T", "NOPROSE", ns=10))
    return [*found, page(1003, "D.json", '{"NOPROSE": 1}', model="json")]


def write_dump(path: Path, code: str, articles: Mapping[str, Sequence[str]], pages_per_stream: int = 0) -> Path:
    """A dump; with `pages_per_stream` in many bz2 streams, as the multistream dumps are; uncompressed if the name ends in .xml."""
    parts = pages(code, articles)
    step = pages_per_stream or len(parts)
    streams = [head(code), *("".join(parts[start : start + step]) for start in range(0, len(parts), step)), "</mediawiki>\n"]
    if not pages_per_stream:
        streams = ["".join(streams)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(stream.encode() if path.suffix == ".xml" else bz2.compress(stream.encode()) for stream in streams))
    return path
