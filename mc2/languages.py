"""One checked code table: language-identification code <-> metadata code <-> benchmark locale.

The canonical code of a language is its lid.176 label where it has one ("no", "tl", "zh", "sh"), and its BCP 47 language subtag otherwise ("zu"). Codes of
data sets ("nb", "fil", "pt-BR", "eng_Latn", "zho_Hans") are brought to it by `canonical`, which refuses what is no language. `wikipedia_language` does the
same for the codes of Wikipedias, of which some name a language as nobody else does.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Sequence
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
    "bho": "bh",
    # Members that stand for their macrolanguage in FLORES-200, OpenLID and GlotLID.
    "arb": "ar",
    "ayr": "ay",
    "azj": "az",
    "dik": "din",
    "ekk": "et",
    "fuv": "ff",
    "gaz": "om",
    "khk": "mn",
    "kmr": "ku",
    "knc": "kr",
    "lvs": "lv",
    "npi": "ne",
    "ory": "or",
    "pbt": "ps",
    "pes": "fa",
    "plt": "mg",
    "prs": "fa",
    "quy": "qu",
    "swh": "sw",
    "uzn": "uz",
    "ydd": "yi",
    "zsm": "ms",
}

# In the style of `eng_Latn`, what would be mistaken for a label of lid.176, or split: Tosk Albanian (the label "als" is Alemannic), Serbo-Croatian.
ISO_639_3 = {"als": "sq", "hbs": "sh"}

# Languages of lid.176 whose captions use the metadata of another (RECIPE 1.2).
METADATA_OF = {"yue": "zh"}

# Languages whose captions another's metadata serves where they have none of their own: spoken Arabic, Chinese written in characters.
SERVED_BY = {
    **METADATA_OF,
    **dict.fromkeys(("acm", "acq", "aeb", "afb", "ajp", "apc", "ars", "ary", "arz"), "ar"),
    **dict.fromkeys(("gan", "hsn", "lzh", "wuu"), "zh"),
}

# Scripts of languages that CLDR does not know; it would say "Latn".
SCRIPTS = {**dict.fromkeys(("acm", "acq", "aeb", "afb", "ajp", "apc", "ars", "ary", "azb"), "Arab"), "tzm": "Tfng", "xal": "Cyrl"}

# Names of the labels that mean something else in BCP 47, or nothing.
NAMES = {
    "als": "Alemannic",
    "bh": "Bihari",
    "eml": "Emilian-Romagnol",
    "nah": "Nahuatl",
    "other": "other languages",
    "sh": "Serbo-Croatian",
}

# Metadata of the Wikipedias whose language the language identification does not know.
OTHER = "other"

# The 329 Wikipedias that were open at the dump of 2024-05-01, as in their domain names: 173 labels of lid.176 (all but three) and 156 more. Source: the list of
# pywikibot 9.1.1 (2024-04-27) and 9.1.2 (2024-05-03), which are equal; 9.1.0 (2024-04-22) lacks bew, igl and kus, 9.2.0 (2024-06-22) adds btm and dtp.
WIKIPEDIAS = (LID176 - {"cbk", "lrc", "yue"}) | frozenset(
    """
    ab ace ady alt ami ang anp arc ary atj avk awa ay ban bat-smg bbc be-tarask bew bi bjn blk bm bug cbk-zam cdo ch chr chy cr crh csb cu dag dga din dz ee
    ext fat ff fiu-vro fj fo fon frp fur gag gan gcr glk gor got gpe guc gur guw ha hak haw hyw ig igl ik inh iu jam kaa kab kbd kbp kcg kg ki kl koi ks ksh
    kus lad lbe lfn lg lij lld ln ltg mad map-bms mdf mi mni mnw nds-nl nia nov nqo nrm nso nv ny olo om pag pap pcd pcm pdc pi pih pnt pwn rmy rn roa-rup
    roa-tara rw sat se sg shi shn simple skr sm smn sn srn ss st stq szl szy tay tcy tet ti tly tn to tpi trv ts tum tw ty udm ve wo xh za zea zgh
    zh-classical zh-min-nan zh-yue zu
    """.split()  # noqa: SIM905
)

# Wikipedias that were closed by then (their dumps are still made) or opened later, until 2026-10: pywikibot 11.9.0.
MORE_WIKIPEDIAS = frozenset(
    "aa ak ann bdr bol btm cho dtp ho hz iba ii isv kai kaj kge kj knc kr lrc mag mh mos mus na ng nr nup ppl rki rsk syl tdd tig tok".split()  # noqa: SIM905
)

# The language of a Wikipedia where its code does not say it. nrm is Norman there and Narom in ISO 639; be_x_old is the database of be-tarask.
WIKIPEDIA_LANGUAGES = {
    "bat-smg": "sgs",
    "be-x-old": "be",
    "cbk-zam": "cbk",
    "fiu-vro": "vro",
    "nrm": "nrf",
    "roa-rup": "rup",
    "zh-classical": "lzh",
    "zh-min-nan": "nan",
    "zh-yue": "yue",
}


@lru_cache(maxsize=4096)
def canonical(code: str) -> str:
    """The canonical code of a language given as a lid.176 label, BCP 47 tag or `eng_Latn` style code. Errors: ValueError for what is no language."""
    if code in LID176 or code == OTHER:
        return code
    if code in ALIASES:
        return ALIASES[code]
    if code[3:4] == "_" and code[:3] in ISO_639_3:
        return ISO_639_3[code[:3]]
    try:
        language = langcodes.Language.get(code)
    except LanguageTagError:
        language = None
    if language is None or language.language is None or not langcodes.Language.make(language=language.language).is_valid():
        near = difflib.get_close_matches(code.lower(), sorted(LID176), n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise ValueError(f"languages: unknown language code {code!r}; need a BCP 47 code such as 'de' or 'pt-BR'{hint}")
    return ALIASES.get(language.language, language.language)


def distinct(codes: Sequence[str]) -> dict[str, str]:
    """Each code -> its canonical code; where several have the same one, they keep what tells them apart: "zh-Hans" and "zh-Hant", "fa-AF".

    Errors: ValueError for what is no language, or two codes for one.
    """
    canonicals = {code: canonical(code) for code in codes}
    shared = {code for code, count in Counter(canonicals.values()).items() if count > 1}
    result = {code: langcodes.standardize_tag(code) if own in shared else own for code, own in canonicals.items()}
    if len(set(result.values())) < len(codes):
        twice, count = Counter(result[code] for code in codes).most_common(1)[0]
        raise ValueError(f"languages: {count} of the codes {', '.join(codes)[:80]} stand for {twice!r}; need each language once")
    return result


def language_to_know(code: str) -> str | None:
    """The language whose knowledge gives a Wikipedia, which nothing known takes, metadata of its own ("bat_smg": "sgs"); None where no code stands for it ("simple")."""
    domain = code.replace("_", "-")
    own = WIKIPEDIA_LANGUAGES.get(domain, ALIASES.get(domain, domain))
    try:
        return own if canonical(own) == own else None
    except ValueError:
        return None


def wikipedia_language(code: str, known: Collection[str] = LID176) -> str | None:
    """The metadata language that a Wikipedia belongs to; None for what is no Wikipedia ("commons").

    A Wikipedia belongs to its own language where the language identification knows it (`known`, canonical codes), else to the part of its code before the "-",
    else to "other" (RECIPE 1.2). So zh_classical gives to "zh" under lid.176 and to "lzh" under a model that knows Literary Chinese. One deviation from the
    published table: cbk_zam gives to "cbk", which lid.176 knows, instead of "other".

    Args:
        code: As in domain names ("zh-classical") or names of dumps ("zh_classical", without "wiki").
        known: Languages that the language identification tells apart.
    """
    domain = code.replace("_", "-")
    if domain not in WIKIPEDIAS and domain not in MORE_WIKIPEDIAS and domain not in WIKIPEDIA_LANGUAGES:
        return None
    own, (head, dash, _) = WIKIPEDIA_LANGUAGES.get(domain, ALIASES.get(domain, domain)), domain.partition("-")
    language = next((language for language in (own, head if dash else own) if language in known), OTHER)
    return METADATA_OF.get(language, language)


def metadata_code(code: str) -> str:
    """The language whose metadata a caption of this language is matched with."""
    code = canonical(code)
    return METADATA_OF.get(code, code)


def script(code: str) -> str:
    """ISO 15924 code of the script that a language is usually written in ("Latn", "Cyrl", "Jpan"); "Zyyy" where CLDR knows none."""
    if code == OTHER:
        return "Zyyy"
    return SCRIPTS.get(code) or langcodes.Language.get(code).maximize().script or "Zyyy"


def name(code: str) -> str:
    """English name of a language: "German" for "de"."""
    return NAMES.get(code) or langcodes.Language.get(code).language_name()
