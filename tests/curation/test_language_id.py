"""Language identification: the evidence beside fastText, candidates, drops, hints, the cascade."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mc2 import languages
from mc2.curation.fasttext_model import FastTextModel
from mc2.curation.hint_languages import hinted_languages
from mc2.curation.language_id import DROPS, LanguageIdentifier, LanguageSettings, metadata_language, model_path
from tests.curation.fasttext_files import write_model

FOURTEEN = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")


@pytest.fixture(scope="module")
def identify() -> LanguageIdentifier:
    return LanguageIdentifier(FOURTEEN)


def test_the_code_table_has_exactly_the_labels_of_the_model() -> None:
    assert set(FastTextModel.open(model_path(None)).labels) == languages.LID176


@pytest.mark.parametrize(
    ("caption", "language"),
    [
        ("the brown fox jumps over the fence", "en"),
        ("der braune Fuchs springt über den Zaun", "de"),
        ("茶色のキツネがフェンスを飛び越える", "ja"),
        ("рыжая лиса прыгает через забор", "ru"),
        ("line one of the text\nline two of the text\n", "en"),
        ("der Fuchs\r\nist braun\x00", "de"),
        ("飞机场", "zh"),  # Han alone: characters of Chinese
        ("気圧", "ja"),  # Han alone: characters of Japanese
        ("iPhone 15 ケース", "ja"),  # more Latin letters than kana
        ("sampah kertas", "id"),  # two words: fastText alone says English
        ("아이폰 15 pro max case", "ko"),
    ],
)
def test_languages(identify: LanguageIdentifier, caption: str, language: str) -> None:
    found, score, drop = identify(caption)
    assert (found, drop) == (language, None)
    assert 0.2 < score <= 1.0001


def test_a_batch_says_what_each_caption_says(identify: LanguageIdentifier) -> None:
    """Also over the borders of chunks, in a slice, as large strings, with nulls."""
    captions = ["der braune Fuchs", "рыжая лиса", "12345", "the brown fox", "", "狐"] * 900
    alone = {caption: identify(caption) for caption in set(captions)}
    for array in (pa.array(captions), pa.array(["x", "y", *captions])[2:], pa.array(captions, pa.large_string())):
        found = identify.identify(array)
        assert [str(column.dtype) for column in (found.language, found.score, found.drop)] == ["int16", "float32", "uint8"]
        codes = [identify.languages[i] if i >= 0 else "" for i in found.language]
        rows = list(zip(codes, found.score.tolist(), [DROPS[i] for i in found.drop], strict=True))
        assert rows == [alone[caption] for caption in captions]
    empty = identify.identify(pa.array([], pa.string()))
    assert len(empty.language) == len(empty.score) == len(empty.drop) == 0


def test_a_language_needs_a_letter_of_its_scripts(identify: LanguageIdentifier) -> None:
    assert identify("12345 🦊 !?") == ("", 0.0, "unknown_language")
    language, score, drop = identify("ἀλώπηξ")
    assert (language, drop) == ("el", "no_metadata")
    assert score > 0.9
    posterior = identify.probabilities(pa.array(["лиса"]))[0]
    possible = {identify.languages[i] for i in np.flatnonzero(posterior)}
    assert {"ru", "uk", "bg", "sr", "kk"} <= possible
    assert not {"en", "el", "zh", "ar"} & possible


def test_the_posterior_is_bayes_rule(identify: LanguageIdentifier) -> None:
    """By hand from its parts: fastText's probability, the share of foreign letters, the frequencies of wordfreq's lists."""
    import wordfreq

    caption = "pão de queijo"
    plain = LanguageIdentifier(FOURTEEN, LanguageSettings(scripts=False, words=False))
    first = plain.probabilities(pa.array([caption]))[0]
    weights = np.zeros(len(identify.candidates))
    for column, code in enumerate(identify.candidates):
        if languages.script(code) == "Latn":
            frequencies = wordfreq.get_frequency_dict(code, "small")
            weights[column] = (first[plain.languages.index(code)] + 1e-6) * np.prod(
                [frequencies.get(w, 1e-7) / 1e-7 for w in caption.split()]
            )
    found = identify.probabilities(pa.array([caption]))[0, : len(identify.candidates)]
    np.testing.assert_allclose(found / found.sum(), weights / weights.sum(), rtol=1e-3, atol=1e-6)


def test_labels_that_share_metadata() -> None:
    assert LanguageIdentifier(["zh", "de"]).candidates == ("de", "zh")
    assert {label: metadata_language(label, {"zh", "de"}) for label in ("yue", "wuu", "zh", "arz")} == {
        "yue": "zh",
        "wuu": "zh",
        "zh": "zh",
        "arz": "arz",
    }
    assert metadata_language("yue", {"zh", "yue"}) == "yue"
    assert metadata_language("arz", {"ar"}) == "ar"


def test_only_candidates_win() -> None:
    assert LanguageIdentifier(["no", "zh"])("en rød rev hopper over gjerdet")[0] == "no"
    assert LanguageIdentifier(["da", "zh"])("en rød rev hopper over gjerdet")[0] == "da"


def test_reasons_of_drops() -> None:
    language, score, drop = LanguageIdentifier(["de"], LanguageSettings(min_score=0.5))("рыжая лиса прыгает через забор")
    assert (language, drop) == ("ru", "no_metadata")
    assert score > 0.9
    language, score, drop = LanguageIdentifier(languages.LID176, LanguageSettings(min_score=0.99))("la casa")
    assert (language, drop) == ("es", "unknown_language")
    assert 0.3 < score < 0.99


def test_settings_without_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"found min_score 2.*between 0 and 1"):
        LanguageSettings(min_score=2)
    with pytest.raises(ValueError, match=r"found hint_gain 0\.5, need a number between 1"):
        LanguageSettings(hint_gain=0.5)
    with pytest.raises(ValueError, match=r"knows none of the languages of the metadata \(tlh\)"):
        LanguageIdentifier(["tlh"])


def test_settings_name_the_model_by_its_content(tmp_path: Path) -> None:
    paths = [write_model(tmp_path / name, ["de", "en"], ["der"]) for name in ("a.bin", "b.bin")]
    assert LanguageSettings(paths[0]).inputs() == LanguageSettings(paths[1]).inputs() != LanguageSettings().inputs()


# --- hints --------------------------------------------------------------------------------------------------------------


def test_languages_of_hints() -> None:
    assert hinted_languages("pt-BR") == {"pt"}
    assert hinted_languages("nb") == {"no"}
    assert {"de", "fr", "it"} <= hinted_languages("und-CH")
    assert "rm" not in hinted_languages("und-CH")
    for nothing in ("", "und", "und-ZZ", "x-default", "no language at all", "🦊"):
        assert hinted_languages(nothing) == frozenset()


def test_a_hint_is_a_prior(identify: LanguageIdentifier) -> None:
    captions = pa.array(["taxi", "taxi", "taxi", "taxi", "the brown fox jumps over the fence", "12"])
    hints = pa.array(["fr", "und-FR", None, "??", "fr", "fr"])
    found = identify.identify(captions, hints)
    plain = identify.identify(captions)
    codes = [identify.languages[i] for i in found.language]
    assert codes[0] == "fr"
    assert codes[4] == "en"
    assert found.score[1] != plain.score[1]
    assert DROPS[found.drop[5]] == "unknown_language"
    for row in (2, 3):
        assert (found.language[row], found.score[row]) == (plain.language[row], plain.score[row])
    hinted, unhinted = (identify.probabilities(pa.array(["taxi"]), pa.array([hint]))[0] for hint in ("fr", ""))
    fr, it = identify.languages.index("fr"), identify.languages.index("it")
    assert hinted[fr] / hinted[it] == pytest.approx(10 * unhinted[fr] / unhinted[it], rel=1e-3)
    deaf = LanguageIdentifier(FOURTEEN, LanguageSettings(hint_gain=1)).identify(captions, hints)
    assert (deaf.language == plain.language).all()


# --- other models -------------------------------------------------------------------------------------------------------

# FLORES-200's codes (OpenLID has the same style), where they are not plainly the two-letter or three-letter code of the language.
FLORES = {
    "zho_Hans": "zh", "zho_Hant": "zh", "yue_Hant": "zh", "cmn_Hani": "zh", "wuu_Hani": "zh", "arb_Arab": "ar", "ars_Arab": "ar", "ary_Arab": "ar",
    "acm_Arab": "ar", "acq_Arab": "ar", "aeb_Arab": "ar", "ajp_Arab": "ar", "apc_Arab": "ar", "arz_Arab": "ar", "als_Latn": "sq", "gsw_Latn": "als",
    "azj_Latn": "az", "azb_Arab": "azb", "ayr_Latn": "ay", "bho_Deva": "bh", "dik_Latn": "din", "ekk_Latn": "et", "est_Latn": "et", "fuv_Latn": "ff",
    "gaz_Latn": "om", "hbs_Latn": "sh", "srp_Cyrl": "sr", "khk_Cyrl": "mn", "kmr_Latn": "ku", "knc_Arab": "kr", "knc_Latn": "kr", "lvs_Latn": "lv",
    "nob_Latn": "no", "nno_Latn": "nn", "npi_Deva": "ne", "ory_Orya": "or", "pbt_Arab": "ps", "pes_Arab": "fa", "prs_Arab": "fa", "plt_Latn": "mg",
    "quy_Latn": "qu", "swh_Latn": "sw", "tgl_Latn": "tl", "fil_Latn": "tl", "uzn_Latn": "uz", "ydd_Hebr": "yi", "zsm_Latn": "ms", "kor_Hang": "ko",
    "kas_Arab": "ks", "kas_Deva": "ks", "min_Arab": "min", "min_Latn": "min", "ace_Arab": "ace", "bjn_Arab": "bjn", "taq_Tfng": "taq", "tzm_Tfng": "tzm",
    "sat_Olck": "sat", "crh_Latn": "crh", "mni_Beng": "mni", "twi_Latn": "tw", "jpn_Jpan": "ja",
    "arb_Latn": "ar-Latn", "hin_Latn": "hi-Latn", "rus_Latn": "ru-Latn",  # in letters that their metadata does not have
    "und_Zxxx": "und_Zxxx",
}  # fmt: skip
PLAIN = """
afr af aka ak amh am asm as ast ast awa awa bak ba bam bm ban ban bel be bem bem ben bn bod bo bos bs bug bug bul bg cat ca ceb ceb ces cs cjk cjk ckb ckb
cym cy dan da deu de dyu dyu dzo dz ell el eng en epo eo eus eu ewe ee fao fo fij fj fin fi fon fon fra fr fur fur gla gd gle ga glg gl grn gn guj gu hat ht
hau ha heb he hin hi hne hne hrv hr hun hu hye hy ibo ig ilo ilo ind id isl is ita it jav jv kab kab kac kac kam kam kan kn kat ka kaz kk kbp kbp kea kea
khm km kik ki kin rw kir ky kmb kmb kon kg lao lo lij lij lim li lin ln lit lt lmo lmo ltg ltg ltz lb lua lua lug lg luo luo lus lus mag mag mai mai mal ml
mar mr mkd mk mlt mt mos mos mri mi mya my nld nl nso nso nus nus nya ny oci oc pag pag pan pa pap pap pol pl por pt ron ro run rn rus ru sag sg san sa
scn scn shn shn sin si slk sk slv sl smo sm sna sn snd sd som so sot st spa es srd sc ssw ss sun su swe sv szl szl tam ta tat tt tel te tgk tg tha th
tir ti tpi tpi tsn tn tso ts tuk tk tum tum tur tr uig ug ukr uk umb umb urd ur vec vec vie vi war war wol wo xho xh yor yo zul zu
""".split()  # noqa: SIM905


def test_labels_in_the_style_of_flores() -> None:
    found = {label: metadata_language(label, {"zh", "ar"}) for label in FLORES}
    assert found == FLORES
    plain = dict(zip(PLAIN[::2], PLAIN[1::2], strict=True))
    assert {code: languages.canonical(f"{code}_Latn") for code in plain} == plain
    assert len(plain) + len(set(FLORES)) >= 201


@pytest.mark.parametrize("labels", [["eng_Latn", "deu_Latn", "zho_Hans", "yue_Hant", "arb_Latn", "und_Mroo"]])
def test_a_model_of_another_style(tmp_path: Path, labels: list[str]) -> None:
    model = write_model(tmp_path / "openlid.bin", labels, ["</s>", "the"])
    identifier = LanguageIdentifier(["ar", "de", "en", "zh"], LanguageSettings(model, words=False))
    assert identifier.candidates == ("de", "en", "zh")  # Arabic in Latin letters is not Arabic
    assert identifier.languages == ("de", "en", "zh", "ar-Latn", "und_Mroo")
    assert identifier("狐")[0] == "zh"


# --- the cascade --------------------------------------------------------------------------------------------------------


def test_the_cascade_asks_lingua_where_the_score_is_low() -> None:
    from lingua import Language, LanguageDetectorBuilder

    both = LanguageIdentifier(["de", "en", "zh"], LanguageSettings(cascade="lingua", cascade_below=0.9))
    fast = LanguageIdentifier(["de", "en", "zh"])
    captions = ["Buntstift", "the brown fox jumps over the fence"]
    before, after = fast.identify(pa.array(captions)), both.identify(pa.array(captions))
    assert before.score[0] < 0.9 < before.score[1] == after.score[1]
    detector = LanguageDetectorBuilder.from_languages(Language.GERMAN, Language.ENGLISH, Language.CHINESE).build()
    values = [
        detector.compute_language_confidence(captions[0], language) for language in (Language.GERMAN, Language.ENGLISH, Language.CHINESE)
    ]
    judged = fast.probabilities(pa.array(captions[:1]))[0] * np.maximum([*values, *[max(values)] * (len(fast.languages) - 3)], 1e-3)
    assert after.score[0] == pytest.approx(float(judged[:3].max() / judged.sum()), rel=1e-4)


def test_the_cascade_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"lingua knows 1 of the languages of the metadata, need at least 2"):
        LanguageIdentifier(["de", "als"], LanguageSettings(cascade="lingua"))
    missing: Any = None
    monkeypatch.setitem(sys.modules, "lingua", missing)
    with pytest.raises(ValueError, match=r"needs lingua-language-detector; pip install 'mc2\[lingua\]'"):
        LanguageIdentifier(["de", "en"], LanguageSettings(cascade="lingua"))
