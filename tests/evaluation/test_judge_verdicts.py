"""The judge's prompts, the parsing of replies, and the numbers: against hand-worked cases and independent formulas."""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm2slm.evaluation.judge.verdicts import (
    PROMPTS,
    Row,
    compared,
    comparing_prompt,
    cost,
    interval,
    key,
    most_lost,
    outcome,
    preference,
    questions,
    rated,
    rating,
    rating_prompt,
    sign_test,
    winner,
    worst_rated,
)

# Prompts


def test_prompts_change_only_with_their_version():
    """Verdicts of different prompts are not comparable: a changed text requires a new PROMPTS and a new hash here."""
    whole = "".join([rating_prompt("q", "a"), rating_prompt("q", "a", "r"), comparing_prompt("q", "a", "b", "r")])
    assert (PROMPTS, hashlib.sha256(whole.encode()).hexdigest()[:16]) == (1, "892e8830c5ca5f29")


def test_two_answers_are_shown_in_both_orders_and_one_answer_once():
    rows = [Row(3, "the question", "the reference", ("first answer", "second answer")), Row(4, "q", " \n", ("x", "y"))]
    ab, ba, plain, _ = questions(rows)
    assert [(q.row, q.order) for q in (ab, ba, plain)] == [(3, "AB"), (3, "BA"), (4, "AB")]
    for question, (a, b) in ((ab, ("first answer", "second answer")), (ba, ("second answer", "first answer"))):
        parts = question.prompt.split("<<< ")
        shown = {part.partition(" >>>\n")[0]: part.partition(" >>>\n")[2].strip() for part in parts[1:]}
        shown.pop("End >>>", None)
        assert shown["The question of the user"] == "the question"
        assert shown["The reference answer"] == "the reference"
        assert (shown["The answer of assistant A"], shown["The answer of assistant B"]) == (a, b)
    assert "reference" not in plain.prompt.lower()  # a blank reference is no reference
    assert all("reference" not in q.prompt.lower() for q in questions([Row(1, "q", "given", ("x", "y"))], False))
    [single] = questions([Row(7, "q {0} {qualities}", "given", ("{reference} }{",))])
    assert (single.row, single.order) == (7, "A")
    assert "q {0} {qualities}\n" in single.prompt and "{reference} }{\n" in single.prompt


def test_a_key_contains_everything_that_determines_a_reply():
    judge = {"model": "m", "parameters": {"temperature": 0, "max_tokens": 5}}
    same = {"parameters": {"max_tokens": 5, "temperature": 0}, "model": "m"}
    assert key(judge, "p") == key(same, "p")
    others = [
        key(judge, "p "),
        key(judge | {"model": "n"}, "p"),
        key(judge | {"parameters": {"temperature": 0.1, "max_tokens": 5}}, "p"),
        key(judge | {"parameters": {"temperature": 0}}, "p"),
        key({"local": "m"}, "p"),
    ]
    assert len({key(judge, "p"), *others}) == 6


# Replies

FILLERS = st.text(st.characters(exclude_characters="[]<>", exclude_categories=["Cs"]), max_size=20)
NUMBERS = {"1": 1.0, "7": 7.0, " 7 ": 7.0, "7.0": 7.0, "7.5": 7.5, "10": 10.0, "0": 0.0, "11": 11.0, "-3": -3.0,
           "100": 100.0, "+7": 7.0}  # fmt: skip
NO_NUMBERS = ["N", "", "7/10", "seven", "7,5", ".", "7.", "A", "٧"]
LETTERS = {"A": "A", "B": "B", "C": "C", " A\n": "A"}
NO_LETTERS = ["a", "D", "AB", "", "7", "A or B"]


def replies(meant, meaningless):
    """(reply, the values of its marks): built from pieces, so that its contents are known."""
    marks = st.one_of(
        st.sampled_from([(f"[[{text}]]", value) for text, value in meant.items()]),
        st.sampled_from([(f"[[{text}]]", None) for text in meaningless]),
        st.sampled_from([("[7]", None), ("[A]", None), ("[ [7]]", None), ("7", None), ("[[7] ]", None)]),
    )

    def joined(parts):
        pieces, values = [], set()
        for filler, (mark, value) in parts:
            pieces += [filler, mark, " "]
            values |= {value} - {None}
        return "".join(pieces), values

    return st.lists(st.tuples(FILLERS, marks), max_size=4).map(joined)


@given(replies(NUMBERS, NO_NUMBERS))
def test_a_rating_is_parsed_if_there_is_exactly_one(built):
    reply, values = built
    meant = next(iter(values)) if len(values) == 1 else None
    assert rating(reply) == (meant if meant is not None and 1 <= meant <= 10 else None)


@given(replies(LETTERS, NO_LETTERS))
def test_a_preference_is_parsed_if_there_is_exactly_one(built):
    reply, values = built
    assert preference(reply) == (next(iter(values)) if len(values) == 1 else None)


@given(st.text())
def test_a_text_without_double_brackets_has_no_verdict(text):
    plain = text.replace("[[", "[")
    assert rating(plain) is None and preference(plain) is None


@pytest.mark.parametrize("read", [rating, preference])
def test_a_judges_thoughts_are_not_a_verdict(read):
    one, other = ("[[7]]", "[[2]]") if read is rating else ("[[A]]", "[[B]]")
    wanted = read(one)
    assert wanted is not None
    assert read(f"<think>It might be {other}, or {one}?</think>\nClearly {one}") == wanted
    assert read(f"It might be {other}.</think>{one}") == wanted  # the opening tag is in the chat template
    assert read(f"<think>It might be {one}") is None  # cut off before the verdict
    assert read(f"<think>{one}</think>") is None
    assert read(f"{one} no, {other}") is None
    assert read(f"{one}, as I said: {one}") == wanted


# Pairs

BOTH_ORDERS = {  # letters with A first, with B first -> the winner, by hand
    ("A", "A"): "tie", ("A", "B"): "A", ("A", "C"): "tie",
    ("B", "A"): "B", ("B", "B"): "tie", ("B", "C"): "tie",
    ("C", "A"): "tie", ("C", "B"): "tie", ("C", "C"): "tie",
}  # fmt: skip


def test_a_verdict_counts_only_where_both_orders_agree():
    for letters in itertools.product("ABC", repeat=2):
        assert outcome(*letters) == BOTH_ORDERS[letters], letters
    for letter in ("A", "B", "C", None):
        assert outcome(letter, None) is None and outcome(None, letter) is None
    assert [winner(letter, "AB") for letter in ("A", "B", "C", None)] == ["A", "B", "tie", None]
    assert [winner(letter, "BA") for letter in ("A", "B", "C", None)] == ["B", "A", "tie", None]


PAIRS = {
    2: ("A", "B"),  # A wins
    3: ("A", "B"),  # A wins
    5: ("A", "B"),  # A wins
    6: ("B", "A"),  # B wins
    7: ("A", "A"),  # always the first answer
    8: ("A", "A"),  # always the first answer
    9: ("B", "B"),  # always the second answer
    11: ("C", "C"),  # tie
    12: ("C", "A"),  # tie, then B
    13: ("A", "C"),  # A, then tie
    14: ("A", None),  # no verdict in one order: no verdict
    15: (None, None),
}


def test_statistics_of_pairs_worked_out_by_hand():
    found = compared(PAIRS, seed=1)
    assert (found["rows"], found["judged"]) == (12, 10)
    assert [(found[name]["count"], found[name]["value"]) for name in ("wins", "ties", "losses")] == [
        (3, pytest.approx(0.3)), (6, pytest.approx(0.6)), (1, pytest.approx(0.1)),
    ]  # fmt: skip
    # 3 against 1: 1, 4, 6, 4, 1 of 16 outcomes; as uneven or more, on both sides: 5 + 5
    assert found["sign_test"] == {"p": pytest.approx(10 / 16), "decided": 4}
    assert found["inconsistent"] == {"count": 5, "share": pytest.approx(0.5), "first": 2, "second": 1, "half": 2}
    # 20 verdicts of judged pairs. A: 3 + 1 (row 6) + 2 * 2 + 1 + 1; B: 3 + 1 + 2; C: 2 + 1 + 1
    assert found["position"] == {
        "first": {"count": 10, "share": pytest.approx(0.5)},
        "second": {"count": 6, "share": pytest.approx(0.3)},
        "tie": {"count": 4, "share": pytest.approx(0.2)},
    }
    assert most_lost(PAIRS) == [6, 12]  # both orders, then one order and a tie; an A and a B cancel out


def test_a_position_bias_is_measured():
    """A judge of quality alone chooses each position half of the time, a biased one always the first."""
    fair = compared({row: ("A", "B") if row % 2 else ("B", "A") for row in range(10)}, seed=1)
    assert (fair["position"]["first"]["share"], fair["inconsistent"]["count"]) == (0.5, 0)
    assert (fair["wins"]["count"], fair["losses"]["count"]) == (5, 5)
    biased = compared(dict.fromkeys(range(10), ("A", "A")), seed=1)
    assert (biased["position"]["first"]["share"], biased["inconsistent"]["share"]) == (1.0, 1.0)
    assert (biased["ties"]["value"], biased["sign_test"]) == (1.0, {"p": 1.0, "decided": 0})


def test_without_judged_pairs_the_values_are_undefined():
    found = compared({1: (None, "A")}, seed=1)
    assert (found["judged"], found["wins"]["value"], found["wins"]["low"]) == (0, None, None)
    assert found["inconsistent"]["share"] is None and found["position"]["first"]["share"] is None
    assert rated({1: None}, seed=1) == {
        "rows": 1, "judged": 0, "mean": {"value": None, "low": None, "high": None}, "ratings": {},
    }  # fmt: skip
    assert worst_rated({1: None}) == [] and most_lost({1: (None, "A")}) == []


# Ratings


def test_statistics_of_ratings_worked_out_by_hand():
    ratings = {1: 7.0, 2: 3.0, 4: None, 5: 10.0, 6: 3.0, 8: 7.5, 9: 1.0}
    found = rated(ratings, seed=1)
    assert (found["rows"], found["judged"]) == (7, 6)
    assert found["mean"]["value"] == pytest.approx(31.5 / 6)
    assert list(found["ratings"].items()) == [("1", 1), ("3", 2), ("7", 1), ("7.5", 1), ("10", 1)]
    assert worst_rated(ratings) == [9, 2, 6]  # below 5.25, ascending, then in the order of the rows


def test_costs_worked_out_by_hand():
    assert cost(2_000_000, 500_000, 0.15, 0.6) == pytest.approx(0.3 + 0.3)


# Statistics


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_interval_of_a_share_is_the_normal_one_for_many_rows(share):
    n = 2000
    found = interval([1.0] * round(n * share) + [0.0] * round(n * (1 - share)), seed=3)
    half = 1.959964 * math.sqrt(share * (1 - share) / n)
    assert found["value"] == pytest.approx(share)
    assert (found["low"], found["high"]) == (
        pytest.approx(share - half, abs=half / 20), pytest.approx(share + half, abs=half / 20),
    )  # fmt: skip


def test_the_interval_equals_that_of_rows_drawn_one_by_one():
    draw = random.Random(5)
    values = [float(draw.choice((1, 2, 2, 9, 10))) for _ in range(25)]
    means = sorted(sum(draw.choices(values, k=25)) / 25 for _ in range(20_000))
    found = interval(values, seed=3)
    assert (found["low"], found["high"]) == (
        pytest.approx(means[500], abs=0.12),
        pytest.approx(means[19_500], abs=0.12),
    )
    assert interval(values, seed=3) == found
    assert interval(values, seed=4) != found
    assert interval([4.0] * 7, seed=1) == {"value": 4.0, "low": 4.0, "high": 4.0}


def binomial_test(wins: int, losses: int) -> Fraction:
    """The two-sided exact test in another form: all splits that are at most as likely as the observed one."""
    n = wins + losses
    ways = [math.factorial(n) // (math.factorial(k) * math.factorial(n - k)) for k in range(n + 1)]
    return sum((Fraction(way, 2**n) for way in ways if way <= ways[wins]), Fraction(0))


def test_the_sign_test_equals_the_binomial_test():
    for wins, losses in itertools.product(range(15), repeat=2):
        assert sign_test(wins, losses) == pytest.approx(float(binomial_test(wins, losses)), rel=1e-12), (wins, losses)
    assert sign_test(8, 2) == 0.109375  # 2 * (1 + 10 + 45) / 1024
    assert sign_test(0, 0) == 1.0


def test_the_sign_test_works_for_many_rows():
    """The number of outcomes exceeds a float: computed by logarithms."""
    wins, losses = 5300, 4900
    n = wins + losses
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(losses + 1)
    ]
    assert sign_test(wins, losses) == pytest.approx(2 * math.fsum(map(math.exp, logs)), rel=1e-6)
    assert 0 <= sign_test(10_000, 200) < 1e-300
