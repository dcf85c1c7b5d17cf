"""The summarization corpus: summaries recomputed from the report's text alone; no sentence contains the summary."""

import random
import re
from collections import Counter

import pytest

from llm2slm.builtin.corpora.reports import KINDS, report
from llm2slm.builtin.corpora.story import tell

# Number words and weekdays, independent of the corpus.
WORDS = [
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
VALUE = {word: value for value, word in enumerate(WORDS)}
WEEK = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def number(word: str) -> int:
    return VALUE[word.lower()]


def find(pattern: str, text: str) -> tuple[str, ...]:
    found = re.findall(pattern, text)
    assert len(found) == 1, (pattern, found, text)
    return found[0] if isinstance(found[0], tuple) else (found[0],)


def sample(kind: str, n: int = 300) -> list[tuple[str, str]]:
    rng = random.Random(kind)
    stories = [KINDS[kind](rng) for _ in range(n)]
    return [(tell(rng, story), story.summary) for story in stories]


def test_match_margin_and_winner_follow_from_both_scores() -> None:
    outcomes: Counter[bool] = Counter()
    for text, summary in sample("match"):
        scores = dict(re.findall(r"(?:The players from )?(\w+) (?:scored|made) (\w+) points?\.", text))
        (home, a), (guest, b) = ((town, number(word)) for town, word in scores.items())
        (day,) = find(r"(?:took place on|was on a cold) (\w+)\.", text)
        (star,) = find(r"(?:The best player was|No other player was as good as) (\w+)\.", text)
        assert summary.endswith(f", and {star} was the best player.")
        if a == b:
            first, second, told_day = find(r"Neither (\w+) nor (\w+) won on (\w+),", summary)
            assert {first, second} == {home, guest}
        else:
            winner, loser, margin, told_day = find(r"^(\w+) beat (\w+) by (\w+) points? on (\w+),", summary)
            assert (winner, loser) == ((home, guest) if a > b else (guest, home))
            assert number(margin) == abs(a - b)
        assert told_day == day
        outcomes[a == b] += 1
    assert min(outcomes[True], outcomes[False]) > 5


def test_departure_time_is_planned_time_plus_delay() -> None:
    for text, summary in sample("departure"):
        (planned,) = find(r"(?:should leave at|The timetable said) (\w+) o'clock", text)
        (delay,) = find(r"(?:had to wait|left) (\w+) hours? (?:longer|too late)", text)
        cause = find(r"The reason was ([\w ]+)\.|(\w[\w ]+) was the cause of the trouble", text)
        told = find(r"^Because of ([\w ]+), the \w+ to \w+ left at (\w+) o'clock instead of (\w+)\.$", summary)
        assert told[0] == "".join(cause).lower()
        assert number(told[1]) == number(planned) + number(delay)
        assert told[2] == planned


def test_weather_place_depends_on_rain_and_temperature_on_change() -> None:
    seen = set()
    for text, summary in sample("weather"):
        wet = "began to rain" in text or "Heavy rain" in text
        assert wet != ("stayed dry" in text or "No rain" in text)
        (start,) = find(r"(?:In the morning, it was|The day began with) (\w+) degrees?\.", text)
        change, way = find(r"By the evening, it was (\w+) degrees? (warmer|colder)", text)
        dry, rain = find(r"should be in the (\w+), (?:or|and otherwise) in the (\w+)", text)
        place, evening = find(r"was in the (\w+), and it was (\w+) degrees? in the evening", summary)
        assert place == (rain if wet else dry)
        assert number(evening) == number(start) + number(change) * (1 if way == "warmer" else -1)
        seen.add((wet, way))
    assert len(seen) == 4


def test_race_winner_and_order_follow_from_the_comparisons() -> None:
    for text, summary in sample("race"):
        name, minutes = find(r"(\w+)(?: needed|'s time was) (\w+) minutes", text)
        times = {name: number(minutes)}
        gaps = re.findall(r"(\w+) was (\w+) minutes? (slower|faster) than (\w+)\.", text)
        assert len(gaps) == 2
        for _ in gaps:
            for who, gap, way, other in gaps:
                if other in times:
                    times[who] = times[other] + number(gap) * (1 if way == "slower" else -1)
        first, best, second, last = find(r"^(\w+) won .* in (\w+) minutes, before (\w+) and (\w+)\.$", summary)
        assert [first, second, last] == sorted(times, key=lambda who: times[who])
        assert number(best) == times[first]


def test_lost_object_ends_with_the_last_receiver() -> None:
    returned: Counter[bool] = Counter()
    for text, summary in sample("lost_and_found"):
        finder = "".join(find(r"(\w+) found the|, (\w+) saw the", text))
        owner = "".join(find(r"belongs to (\w+)\.|The owner of the \w+ is (\w+)\.", text))
        holder = finder
        for giver, receiver, taker, loser in re.findall(
            r"(\w+) gave the \w+ to (\w+)\.|Then (\w+) took the \w+ from (\w+)\.", text
        ):
            assert holder == (giver or loser)
            holder = receiver or taker
        assert summary.startswith(f"{finder} found {owner}'s ")
        assert summary.endswith(f", and {owner} has it again." if holder == owner else f", and {holder} has it now.")
        returned[holder == owner] += 1
    assert min(returned[True], returned[False]) > 50


def test_appointment_is_moved_by_the_stated_days() -> None:
    for text, summary in sample("appointment"):
        (day,) = find(r"(?:to meet (?:in|at) the|The plan was the) \w+ on (\w+)\.", text)
        (shift,) = find(r"(\w+) days? later", text)
        told_day, first_day = find(r" on (\w+) because \w+ [\w ]+ on (\w+)\.$", summary)
        assert first_day == day
        assert WEEK.index(told_day) == (WEEK.index(day) + number(shift)) % 7


def test_vote_and_fundraiser_summaries_have_correct_arithmetic() -> None:
    for text, summary in sample("vote"):
        yes = "".join(find(r"(\w+) members? voted for the plan|The plan got (\w+) votes?", text))
        no = "".join(find(r"(\w+) members? voted against the plan|Against the plan, there were (\w+)", text))
        verdict, margin = find(r"(accepted|rejected) the new \w+ by (\w+) votes?", summary)
        assert verdict == ("accepted" if number(yes) > number(no) else "rejected")
        assert number(margin) == abs(number(yes) - number(no))
    for text, summary in sample("fundraiser"):
        amounts = [number(word) for word in re.findall(r"(\w+) thousand euros", text)]
        (need,) = find(r"(?:In all,|The price was) (\w+) thousand", text)
        total = sum(amounts) - number(need)
        assert f"raised {WORDS[total]} thousand euros" in summary
        missing = number(need) - total
        if missing <= 0:
            assert summary.endswith(", which is enough.")
        else:
            assert summary.endswith(f", but it still needs {WORDS[missing]} thousand.")


def test_sums_and_differences_in_the_other_kinds_are_correct() -> None:
    for text, summary in sample("accident"):
        hurt = sum(number(word) for word in re.findall(r"(\w+) (?:man|men|woman|women) (?:was|were) hurt", text))
        (cause,) = find(r"say that ([\w ]+)\.", text)
        assert f" because {cause}. " in summary
        verb = "person was" if hurt == 1 else "people were"
        end = f"{WORDS[hurt].capitalize()} {verb} hurt." if hurt else "Nobody was hurt."
        assert summary.endswith(f" {end}")
    for text, summary in sample("price"):
        old = number("".join(find(r"Last week, .* cost (\w+) euros|The old price of .* was (\w+) euros", text)))
        new = number("".join(find(r"Today, .*? costs (\w+) euros|Now people pay (\w+) euros", text)))
        gap, way = find(r"(\w+) euros? (more|less) than last week", summary)
        assert (number(gap), way) == (abs(new - old), "more" if new > old else "less")
    for text, summary in sample("delivery"):
        ordered = number("".join(find(r"ordered (\w+)|The order was for (\w+)", text)))
        trucks = re.findall(r"truck brought (\w+)|(\w+) \w+ came with the \w+ truck", text)
        assert len(trucks) == 2
        missing = ordered - sum(number(a or b) for a, b in trucks)
        if missing:
            assert f" {WORDS[missing]} {'is' if missing == 1 else 'are'} missing" in summary
            assert f" got {WORDS[ordered - missing]} " in summary
        else:
            assert f"all of its {WORDS[ordered]} " in summary
    for text, summary in sample("trip"):
        legs = re.findall(r"(\w+) hours?", text)
        assert len(legs) == 2
        assert summary.endswith(f" in {WORDS[number(legs[0]) + number(legs[1])]} hours.")
    for text, summary in sample("farm"):
        start = number("".join(find(r"In January, there were (\w+)|The year began with (\w+)", text)))
        sold = number("".join(find(r"bought (\w+)|took away (\w+)", text)))
        born = number("".join(find(r"In summer, (\w+)|The summer brought (\w+)", text)))
        now, end = find(r" now has (\w+) \w+, (.*)\.$", summary)
        assert number(now) == start - sold + born
        change = WORDS[abs(born - sold)]
        way = "more" if born > sold else "fewer"
        assert end == ("as many as in January" if born == sold else f"{change} {way} than in January")


def token_f1(left: str, right: str) -> float:
    a, b = (Counter(re.findall(r"\w+", text.lower())) for text in (left, right))
    common = sum((a & b).values())
    return 2 * common / (sum(a.values()) + sum(b.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_no_single_sentence_contains_the_summary(kind: str) -> None:
    best, first = [], []
    for text, summary in sample(kind, 200):
        sentences = re.split(r"(?<=\.) ", text)
        scores = [token_f1(sentence, summary) for sentence in sentences]
        best.append(max(scores))
        first.append(scores[0])
        # Facts are numbers, names and days; no sentence may contain all those of the summary.
        facts = {w for w in re.findall(r"\w+", summary) if w in VALUE or w in WEEK or w[0].isupper()}
        facts -= {"The", "In", "Because", "Neither", "Nobody"}
        assert max(scores) < 0.85
        assert len(facts) < 2 or not any(facts <= set(re.findall(r"\w+", sentence)) for sentence in sentences)
    assert sum(best) / len(best) < 0.65
    assert sum(first) / len(first) < 0.5


def test_reports_are_a_deterministic_function_with_stated_lengths() -> None:
    rng = random.Random(5)
    rows = [report(rng) for _ in range(20_000)]
    again = random.Random(5)
    assert [report(again) for _ in range(200)] == rows[:200]
    assert report(random.Random(6)) != rows[0]
    known: dict[str, str] = {}
    for text, summary in rows:
        assert known.setdefault(text, summary) == summary
        assert 35 <= len(text.split()) <= 70
        assert 10 <= len(summary.split()) <= 20
        assert 4 <= len(re.findall(r"\.(?: |$)", text)) <= 7
        assert text.endswith(".")
        assert not re.search(r"  |\{", text)
        assert all(sentence[0].isupper() and len(sentence) > 8 for sentence in text.split(". "))
    assert len(known) > 19_900


def test_every_kind_occurs() -> None:
    assert len(KINDS) >= 8
    rng = random.Random(0)
    rows = [report(rng)[0] for _ in range(3000)]
    marks = {
        "match": "best player|good as",
        "departure": "too late|hours? longer",
        "fundraiser": "thousand euros",
        "lost_and_found": "belongs to|owner of",
        "vote": "gainst the plan",
        "weather": "it was .* degree",
        "price": "costs .* euros?|people pay",
        "delivery": "second truck",
        "accident": "were hurt|was hurt",
        "trip": "made a trip|visit a friend",
        "race": "faster|slower",
        "farm": "young",
        "appointment": "days? later",
    }
    assert set(marks) == set(KINDS)
    for kind in KINDS:
        assert sum(bool(re.search(marks[kind], row)) for row in rows) > 100, kind
