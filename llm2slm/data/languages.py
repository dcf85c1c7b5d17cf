"""Language codes (ISO 639-1, and yue) with their English names."""

from __future__ import annotations

import re

from llm2slm.nearest_names import nearest
from llm2slm.types import UserError

_TABLE = """aa Afar, ab Abkhazian, ae Avestan, af Afrikaans, ak Akan, am Amharic, an Aragonese, ar Arabic, as Assamese,
av Avaric, ay Aymara, az Azerbaijani, ba Bashkir, be Belarusian, bg Bulgarian, bi Bislama, bm Bambara, bn Bengali,
bo Tibetan, br Breton, bs Bosnian, ca Catalan, ce Chechen, ch Chamorro, co Corsican, cr Cree, cs Czech,
cu Church Slavonic, cv Chuvash, cy Welsh, da Danish, de German, dv Divehi, dz Dzongkha, ee Ewe, el Greek, en English,
eo Esperanto, es Spanish, et Estonian, eu Basque, fa Persian, ff Fulah, fi Finnish, fj Fijian, fo Faroese, fr French,
fy Western Frisian, ga Irish, gd Scottish Gaelic, gl Galician, gn Guarani, gu Gujarati, gv Manx, ha Hausa, he Hebrew,
hi Hindi, ho Hiri Motu, hr Croatian, ht Haitian, hu Hungarian, hy Armenian, hz Herero, ia Interlingua, id Indonesian,
ie Interlingue, ig Igbo, ii Sichuan Yi, ik Inupiaq, io Ido, is Icelandic, it Italian, iu Inuktitut, ja Japanese,
jv Javanese, ka Georgian, kg Kongo, ki Kikuyu, kj Kuanyama, kk Kazakh, kl Kalaallisut, km Khmer, kn Kannada, ko Korean,
kr Kanuri, ks Kashmiri, ku Kurdish, kv Komi, kw Cornish, ky Kyrgyz, la Latin, lb Luxembourgish, lg Ganda,
li Limburgish, ln Lingala, lo Lao, lt Lithuanian, lu Luba-Katanga, lv Latvian, mg Malagasy, mh Marshallese, mi Maori,
mk Macedonian, ml Malayalam, mn Mongolian, mr Marathi, ms Malay, mt Maltese, my Burmese, na Nauru,
nb Norwegian Bokmål, nd North Ndebele, ne Nepali, ng Ndonga, nl Dutch, nn Norwegian Nynorsk, no Norwegian,
nr South Ndebele, nv Navajo, ny Chichewa, oc Occitan, oj Ojibwa, om Oromo, or Odia, os Ossetian, pa Punjabi, pi Pali,
pl Polish, ps Pashto, pt Portuguese, qu Quechua, rm Romansh, rn Rundi, ro Romanian, ru Russian, rw Kinyarwanda,
sa Sanskrit, sc Sardinian, sd Sindhi, se Northern Sami, sg Sango, si Sinhala, sk Slovak, sl Slovenian, sm Samoan,
sn Shona, so Somali, sq Albanian, sr Serbian, ss Swati, st Southern Sotho, su Sundanese, sv Swedish, sw Swahili,
ta Tamil, te Telugu, tg Tajik, th Thai, ti Tigrinya, tk Turkmen, tl Tagalog, tn Tswana, to Tonga, tr Turkish,
ts Tsonga, tt Tatar, tw Twi, ty Tahitian, ug Uyghur, uk Ukrainian, ur Urdu, uz Uzbek, ve Venda, vi Vietnamese,
vo Volapük, wa Walloon, wo Wolof, xh Xhosa, yi Yiddish, yo Yoruba, yue Cantonese, za Zhuang, zh Chinese, zu Zulu"""

NAMES: dict[str, str] = dict(re.split(r"\s", entry, maxsplit=1) for entry in re.split(r",\s", _TABLE))
"""English name by code."""


def primary(code: str) -> str:
    """The language part of a code with a region or a script: zh for zh-CN, zh_Hans and ZH."""
    return re.split("[-_]", code.strip().lower(), maxsplit=1)[0]


_MISTAKEN = {"cn": "zh", "cz": "cs", "dk": "da", "gr": "el", "ir": "fa", "jp": "ja", "jpn": "ja", "vn": "vi"}
"""Language codes for country codes and for longer language codes, for suggestions."""


def _nearest(word: str) -> str:
    """The suggestion for an unknown code or a language name."""
    if word in _MISTAKEN or (word[:2] in NAMES and len(word) == 3):
        return _MISTAKEN.get(word, word[:2])
    by_name = {name.lower(): code for code, name in NAMES.items()}
    near = nearest(word, [*NAMES, *by_name])[0]
    return by_name.get(near, near)


def known(code: str, key: str) -> str:
    """The language code in the spelling of `NAMES`.

    Args:
        code: with or without a region, for example zh, zh-CN, pt_BR.
        key: configuration key, for the message.

    Raises:
        UserError: the language is unknown; the message has a suggestion.
    """
    found = primary(code)
    if found in NAMES:
        return found
    meant = _nearest(code.strip().lower())
    raise UserError(
        f"{key}={code}: unknown language; did you mean {meant} ({NAMES[meant]})? Give a code of ISO 639-1, for "
        "example en, de, ru, ar, hi, zh, ja, ko, th"
    )
