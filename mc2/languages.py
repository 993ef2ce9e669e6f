"""One checked code table: language-identification code <-> metadata code <-> benchmark locale.

The canonical code of a language is its lid.176 label where it has one ("no", "tl", "zh", "sh"), and its BCP 47 language subtag otherwise ("zu"). Codes of
data sets ("nb", "fil", "pt-BR", "eng_Latn", "zho_Hans") are brought to it by `canonical`, which refuses what is no language.
"""

from __future__ import annotations

import difflib
from functools import lru_cache

import langcodes
from langcodes.tag_parser import LanguageTagError

# The 176 labels of fastText's lid.176 models, checked against the packaged model by a test.
LID176 = frozenset(
    """
    af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq dsb dty dv el eml en eo es et eu fa
    fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv
    mai mg mhr min mk ml mn mr mrj ms mt mwl my myv mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd
    sh si sk sl so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
    """.split()  # noqa: SIM905  (a list of 176 literals fills a page)
)

# Codes that data sets use for a language that lid.176 knows under another label.
ALIASES = {
    "nb": "no",
    "fil": "tl",
    "iw": "he",
    "in": "id",
    "ji": "yi",
    "jp": "ja",
    "cmn": "zh",
    "gsw": "als",
    "quz": "qu",
    "arb": "ar",
    "pes": "fa",
    "swh": "sw",
}

# Languages of lid.176 whose captions use the metadata of another (RECIPE 1.2).
METADATA_OF = {"yue": "zh"}


@lru_cache(maxsize=4096)
def canonical(code: str) -> str:
    """The canonical code of a language given as a lid.176 label, BCP 47 tag or `eng_Latn` style code. Errors: ValueError for what is no language."""
    if code in LID176:
        return code
    if code in ALIASES:
        return ALIASES[code]
    try:
        language = langcodes.Language.get(code)
    except LanguageTagError:
        language = None
    if language is None or language.language is None or not langcodes.Language.make(language=language.language).is_valid():
        near = difflib.get_close_matches(code.lower(), sorted(LID176), n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise ValueError(f"languages: unknown language code {code!r}; need a BCP 47 code such as 'de' or 'pt-BR'{hint}")
    return ALIASES.get(language.language, language.language)


def metadata_code(code: str) -> str:
    """The language whose metadata a caption of this language is matched with."""
    code = canonical(code)
    return METADATA_OF.get(code, code)


def script(code: str) -> str:
    """ISO 15924 code of the script that a language is usually written in ("Latn", "Cyrl", "Jpan"); "Zyyy" where CLDR knows none."""
    return langcodes.Language.get(code).maximize().script or "Zyyy"


def name(code: str) -> str:
    """English name of a language: "German" for "de"."""
    return langcodes.Language.get(code).language_name()
