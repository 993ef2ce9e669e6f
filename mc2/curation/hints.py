"""What a page says of its language, as one BCP 47 tag: the `hint` of a pair. A prior for the language identification, never the truth."""

from __future__ import annotations

from functools import lru_cache

import langcodes
from langcodes.tag_parser import LanguageTagError

MAX_CHARACTERS = 100  # a longer declaration is none

# Country-code domains that anybody registers for how they look or because they cost nothing; Google Search treats most of them as generic
# (developers.google.com/search/docs/specialty/international/managing-multi-regional-sites).
GENERIC_DOMAINS = frozenset(
    """
    ac ad ag ai am as bz cc cd cf co cx dj fm ga gd gg gl gq gs hm im io la lc ly me ml ms mu nf nu pn pw sc sh so sr st su sx tc tk to tv vc vg ws
    """.split()  # noqa: SIM905  (a list of literals fills a page)
)
COUNTRY_OF_DOMAIN = {
    "uk": "GB",
    "xn--p1ai": "RU",
    "xn--90ais": "BY",
    "xn--j1amh": "UA",
    "xn--fiqs8s": "CN",
    "xn--kprw13d": "TW",
    "xn--3e0b707e": "KR",
}
NO_LANGUAGE = frozenset(["und", "mul", "zxx", "mis"])
NO_COUNTRY = frozenset(["EU", "UN", "ZZ"])


@lru_cache(maxsize=1 << 16)
def declared_hint(text: str) -> str:
    """The tag of a declaration such as "de", "pt_BR" or "en-GB, en"; "" for several languages, for none, and for what is no language.

    A country in the place of the language ("jp", "cz", common mistakes) says the country: "und-JP".
    """
    if len(text) > MAX_CHARACTERS:
        return ""
    tags = [tag for tag in map(_tag, text.split(",")) if tag]
    return tags[0] if len({tag.partition("-")[0] for tag in tags}) == 1 else ""


def _tag(text: str) -> str:
    """Language, script and country of one declaration as a tag, "" if it says nothing."""
    text = text.strip().replace("_", "-")
    try:
        tag = langcodes.Language.get(text) if text else langcodes.Language.make()
    except (LanguageTagError, ValueError):
        return ""
    if not tag.is_valid():
        return _country_tag(text)
    if tag.language is None or tag.language in NO_LANGUAGE or tag.language.startswith("x-"):
        return _country_tag(tag.territory or "")
    return str(langcodes.Language.make(language=tag.language, script=tag.script, territory=tag.territory))


@lru_cache(maxsize=1 << 16)
def country_hint(host: str) -> str:
    """ "und-CH" for "www.example.ch"; "" for domains that belong to no country, or to one in name only (.com, .io, .tv)."""
    domain = host.rstrip(".").rpartition(".")[2].lower()
    if domain in GENERIC_DOMAINS or "." not in host:
        return ""
    return _country_tag(COUNTRY_OF_DOMAIN.get(domain, domain))


def _country_tag(country: str) -> str:
    """ "und-CH" for "ch" if that is a country, else ""."""
    if not (len(country) == 2 and country.isascii() and country.isalpha()):
        return ""
    tag = f"und-{country.upper()}"
    return tag if country.upper() not in NO_COUNTRY and langcodes.tag_is_valid(tag) else ""
