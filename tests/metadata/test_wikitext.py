"""Plain text of wiki markup: by cases, and against mwparserfromhell alone on whole articles."""

from __future__ import annotations

import random
from contextlib import suppress

import mwparserfromhell
import pytest

from mc2.metadata.tokens import simple_words
from mc2.metadata.wikitext import hidden_prefixes, plain_text

HIDDEN = hidden_prefixes(["Datei", "Kategorie", "แฟ้ม"], ["fr", "zh-yue", "simple"])


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Berlin''' ist ''die'' [[Hauptstadt]] [[Deutschland|Deutschlands]].", "Berlin ist die Hauptstadt Deutschlands."),
        ("[[Haus]]es und [[Fall (Recht)|]]x", "Hauses und x"),
        ("a {{Vorlage|b|c={{d|{{e}}}}|[[f]]}} g", "a  g"),
        ("a<ref>b</ref> c<ref name=x /> d<ref name='y'>{{e|<f>}}</ref>", "a  c  d "),
        ("a<!-- b\nc -->d", "ad"),
        ("== Titel ==\na\n=== B === \nc", "\na\n\nc"),
        ("a\n{| class=x\n| b\n|-\n| {|\n| c\n|}\n|}\nd", "a\n\nd"),
        ("[[Datei:A.jpg|mini|b [[c]] d]]e", "e"),
        ("[[datei: A b.jpg|mini|b]]e [[แฟ้ม:x|y]]f [[File:x.png|z]]g", "e f g"),
        ("[[Bild:A.JPG|links|b]]c", "c"),  # an old name of the namespace, known by the ending of the file
        ("[[Kategorie:A]][[fr:A]][[zh-yue:A]]b", "b"),
        ("[[:Kategorie:A]] und [[Star Wars: Episode|Krieg: der Sterne]]", ":Kategorie:A und Krieg: der Sterne"),
        ("[https://example.org Text davon] [https://example.org] x", "Text davon  x"),
        ("a &amp; b&nbsp;c &lt;d&gt;", "a & b\xa0c <d>"),
        ("<small>klein</small> H<sub>2</sub>O<br />x", "klein H2O\nx"),
        ("<math>\\frac{{a}}{b}</math>a<nowiki>[[b]]</nowiki>", " a "),
        ("-{简体}-字 -{zh-hans:a; zh-hant:b}-c", "简体字 c"),
        ("__NOTOC__a __kein__", "a __kein__"),
        ("", ""),
    ],
)  # fmt: skip
def test_cases(markup: str, text: str) -> None:
    assert plain_text(markup, HIDDEN) == text


@pytest.mark.parametrize(
    "markup",
    ["[[", "]]", "{{", "}} {{", "{|", "|}", "<ref>", "</ref>", "<!--", "''", "[[a|b", "{{a|[[b}}]]", "[[a [[b]] c]]", "-{", "<", "&#0;"],
)
def test_broken_markup_loses_at_most_its_own_line(markup: str) -> None:
    assert plain_text(f"vorher\n{markup}\nnachher", HIDDEN).startswith("vorher")
    assert plain_text(f"vorher\n{markup}", HIDDEN).startswith("vorher")


def test_deep_and_long_markup_ends() -> None:
    assert plain_text("{{a|" * 2000 + "}}" * 2000 + "\nnachher", HIDDEN).endswith("nachher")
    assert plain_text("[[a|" * 500 + "\nnachher", HIDDEN).endswith("nachher")
    assert "nachher" in plain_text("{|" + "|{" * 20_000 + "\nnachher", HIDDEN)


def test_against_the_parser_alone() -> None:
    """The patterns that go first may change the speed only: the words are those of mwparserfromhell on the whole page, where both remove the same elements."""
    pieces = [
        "Das [[Haus]] am [[See|großen See]]",
        " ist '''alt'''.",
        "{{Vorlage|x={{y}}|[[z]]}}",
        "<ref>{{cite|a}} b</ref>",
        "<!-- nichts -->",
        "\n* Punkt [[Eins]]\n",
        "[[Datei:A.jpg|mini|Ein [[Bild]]]]",
        " [https://example.org ein Verweis] ",
        "H<sub>2</sub>O &amp; ''mehr''",
        "\n{|\n| a || b\n|}\n",
        " – und [[Berlin|Berlins]] Mitte",
    ]
    rng = random.Random(0)
    for _ in range(60):
        markup = " ".join(rng.choices(pieces, k=12))
        code = mwparserfromhell.parse(markup)
        for node in [*code.filter_templates(), *code.filter_comments(), *code.filter_wikilinks(), *code.filter_tags()]:
            hidden = str(getattr(node, "title", "")).startswith("Datei:") or str(getattr(node, "tag", "")) in ("ref", "table")
            if hidden or not (hasattr(node, "title") or hasattr(node, "tag")):
                with suppress(ValueError):  # inside of another that is gone
                    code.remove(node)
        assert [w for w in simple_words(plain_text(markup, HIDDEN)) if w != "\0"] == [
            w for w in simple_words(str(code.strip_code())) if w != "\0"
        ]
