"""The request kinds of the instruction corpus: random arguments, display of the arguments, and answer of each kind.

Answers are computed from the arguments only, so tests can check them with hand-written arguments.
"""

import json
import random
from collections.abc import Callable, Sequence

from llm2slm.builtin.corpora.lexicon import load_lexicon
from llm2slm.builtin.corpora.sentences import (
    Sentence,
    capitalized,
    draw_pair,
    draw_sentence,
    draw_sited,
)
from llm2slm.builtin.corpora.story import NAMES, NUMBERS, TOWNS

LEXICON = load_lexicon()
_COUNTED = tuple(noun for noun in LEXICON.nouns if not noun.mass)
_BASES = tuple({verb.en_base: verb for verb in LEXICON.verbs}.values())
PAST = {verb.en_base: verb.en_past for verb in _BASES}
_GRADED = tuple(adjective for adjective in LEXICON.adjectives if adjective.en_comparative)
_OF_PEOPLE = tuple(adjective for adjective in _GRADED if "boy" in adjective.nouns and "girl" in adjective.nouns)
_MOODS = ("happy", "sad", "tired", "angry", "proud", "curious")
_WOMEN = {word.en for word in LEXICON.by_category["name_f"]}
_ARTICLES = {"m": "der", "f": "die", "n": "das"}
# Groups without a common member; the word is how a request names the group.
_GROUPS = {
    "animal": "animals",
    "clothing": "clothes",
    "building": "buildings",
    "vehicle": "vehicles",
    "drink": "drinks",
    "person": "people",
    "furniture": "furniture",
}
_GROUP_CLASS = {word: name for name, word in _GROUPS.items()}
_OPPOSITE_PAIRS = (
    "big small, long short, beautiful ugly, good bad, clever stupid, strong weak, rich poor, happy sad, "
    "sick healthy, lazy hard-working, quiet loud, fast slow, expensive cheap, clean dirty, warm cold, full empty, "
    "thick thin, narrow wide, interesting boring, wild tame, hard soft"
)
OPPOSITES = {a: b for pair in _OPPOSITE_PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
OPPOSITES |= {"young": "old", "new": "old", "heavy": "light", "dark": "light"}
_DESCRIBED = tuple(
    (noun.en_sg, adjective.en)
    for noun in _COUNTED
    for adjective in LEXICON.adjectives_of[noun.en_sg]
    if adjective.en in OPPOSITES
)

Args = tuple[object, ...]


def listed(words: Sequence[str]) -> str:
    """Joins words by commas."""
    return ", ".join(words)


def nouns(low: int, high: int) -> Callable[[random.Random], Args]:
    """Returns a draw of one list of `low` to `high` countable nouns."""

    def draw(rng: random.Random) -> Args:
        return ([noun.en_sg for noun in rng.sample(_COUNTED, rng.randint(low, high))],)

    return draw


def show_list(words: Sequence[str]) -> Sequence[str]:
    """Shows a list of words."""
    return (listed(words),)


def draw_verbs(rng: random.Random) -> Args:
    """Draws two to four verbs."""
    return ([verb.en_base for verb in rng.sample(_BASES, rng.randint(2, 4))],)


def draw_graded(rng: random.Random) -> Args:
    """Draws two to four adjectives that have a comparative."""
    return ([adjective.en for adjective in rng.sample(_GRADED, rng.randint(2, 4))],)


def german(words: Sequence[str]) -> str:
    """`dog, cat` -> `der Hund, die Katze`."""
    nouns = [LEXICON.noun[word] for word in words]
    return listed([f"{_ARTICLES[noun.gender]} {noun.de_sg}" for noun in nouns])


def draw_group(rng: random.Random) -> Args:
    """Draws the name of a group and words of which one to three belong to it."""
    wanted, *others = rng.sample(list(_GROUPS), 4)
    inside = rng.sample(LEXICON.by_class[wanted], rng.randint(1, 3))
    outside = [rng.choice(LEXICON.by_class[name]) for name in others[: rng.randint(1, 3)]]
    words = [noun.en_sg for noun in (*inside, *outside)]
    rng.shuffle(words)
    return _GROUPS[wanted], words


def members(group: str, words: Sequence[str]) -> str:
    """Those of the words that belong to the group, in their order."""
    return listed([word for word in words if LEXICON.noun[word].semantic_class == _GROUP_CLASS[group]])


def draw_comparison(rng: random.Random) -> Args:
    """Draws two different numbers and `more` or `less`."""
    return (*rng.sample(range(1, 21), 2), rng.choice(("more", "less")))


def compare(a: int, b: int, word: str) -> str:
    """`(7, 12, "more")` -> `Twelve is more than seven.`"""
    first, second = (max(a, b), min(a, b)) if word == "more" else (min(a, b), max(a, b))
    return f"{capitalized(NUMBERS[first])} is {word} than {NUMBERS[second]}."


def draw_sum(rng: random.Random) -> Args:
    """Draws a sum or difference between 1 and 20."""
    total = rng.randint(2, 20)
    part = rng.randint(1, total - 1)
    return (part, total - part, "plus") if rng.random() < 0.5 else (total, part, "minus")


def arithmetic(a: int, b: int, sign: str) -> str:
    """`(4, 7, "plus")` -> `Four plus seven is eleven.`"""
    result = a + b if sign == "plus" else a - b
    return f"{capitalized(NUMBERS[a])} {sign} {NUMBERS[b]} is {NUMBERS[result]}."


def draw_having(rng: random.Random) -> Args:
    """Draws a name, a number of things, and how many are bought or sold."""
    total = rng.randint(4, 20)
    part = rng.randint(2, total - 2)
    thing = rng.choice(LEXICON.by_class[rng.choice(("tool", "text"))]).en_pl
    if rng.random() < 0.5:
        return rng.choice(NAMES), part, thing, "buys", total - part
    return rng.choice(NAMES), total, thing, "sells", part


def having(name: str, has: int, things: str, action: str, change: int) -> str:
    """`("Anna", 4, "keys", "buys", 3)` -> `Anna has seven keys.`"""
    return f"{name} has {NUMBERS[has + change if action == 'buys' else has - change]} {things}."


def show_having(name: str, has: int, things: str, action: str, change: int) -> Sequence[str]:
    """Shows the little story, then name and things for the question."""
    return f"{name} has {NUMBERS[has]} {things} and {action} {NUMBERS[change]} {things}.", name, things


def draw_story(rng: random.Random) -> Args:
    """Draws two sentences, a question word and the index of the questioned sentence."""
    return (*draw_pair(rng), rng.choice(("who", "what", "where")), rng.randint(0, 1))


def story_answer(first: Sentence, second: Sentence, word: str, about: int) -> str:
    """Answers a question about one of two sentences in a sentence: `Emma forgot a drum.`"""
    told = (first, second)[about]
    return told.past() if word == "where" else told._replace(place="").past()


def show_story(first: Sentence, second: Sentence, word: str, about: int) -> Sequence[str]:
    """Shows the two sentences and the question."""
    told = (first, second)[about]
    question = {
        "who": f"Who {told.verb.en_past} {told.object}?",
        "what": f"What did {told.subject} {told.verb.en_base}?",
        "where": f"Where did {told.subject} {told.verb.en_base} {told.object}?",
    }[word]
    return f"{first.past()} {second.past()}", question


def extract(sentence: Sentence) -> str:
    """`who: Anna; what: a hat; where: in the park`."""
    return f"who: {sentence.subject}; what: {sentence.object}; where: {sentence.place}"


def draw_json(rng: random.Random) -> Args:
    """Draws a name, a job and a town."""
    return rng.choice(NAMES), rng.choice(LEXICON.by_class["person"][5:18]).en_sg, rng.choice(TOWNS)


def as_json(name: str, job: str, town: str) -> str:
    """One JSON object on one line."""
    return json.dumps({"name": name, "job": job, "town": town})


def draw_because(rng: random.Random) -> Args:
    """Draws a name, a mood and its reason."""
    sentence = draw_sentence(rng)
    name = rng.choice([name for name in NAMES if name != sentence.subject])
    return name, rng.choice(_MOODS), sentence


def because(name: str, adjective: str, sentence: Sentence) -> str:
    """`Anna is happy because the cook bought an egg.`"""
    return f"{name} is {adjective} because {sentence.subject} {sentence.past()[len(sentence.subject) + 1 :]}"


def draw_pattern(rng: random.Random) -> Args:
    """Draws start and step of four numbers between 1 and 20."""
    step = rng.choice((1, 2, 3, 4, -1, -2, -3))
    return (rng.randint(1, 20 - 3 * step) if step > 0 else rng.randint(1 - 3 * step, 20)), step


def show_pattern(start: int, step: int) -> Sequence[str]:
    """Shows the first three numbers."""
    return (listed([NUMBERS[start + i * step] for i in range(3)]),)


def draw_order(rng: random.Random) -> Args:
    """Draws a comparative, three names from most to least, and whether the telling is turned around."""
    return rng.choice(_OF_PEOPLE).en_comparative, *rng.sample(NAMES, 3), rng.random() < 0.5


def outer(word: str, *names: str | bool) -> str:
    """`("older", "Anna", "Tom", "Lena", True)` -> `Anna is older than Lena.`"""
    return f"{names[0]} is {word} than {names[2]}."


def show_order(word: str, a: str, b: str, c: str, swap: bool) -> Sequence[str]:
    """Shows two comparisons, and a question about the outer two."""
    told = [f"{a} is {word} than {b}.", f"{b} is {word} than {c}."]
    asked = (c, a) if swap else (a, c)
    return " ".join(told[::-1] if swap else told), f"Who is {word}, {asked[0]} or {asked[1]}?"


_PLACE_WORDS = ("first", "second", "third", "last")


def draw_position(rng: random.Random) -> Args:
    """Draws a position and a list of words."""
    return rng.choice(_PLACE_WORDS), [noun.en_sg for noun in rng.sample(_COUNTED, rng.randint(4, 6))]


def draw_replace(rng: random.Random) -> Args:
    """Draws a sentence, its object and another object that fits the verb."""
    sentence = draw_sentence(rng, definite=True)
    old = sentence.object.removeprefix("the ")
    others = [noun.en_sg for noun in sentence.verb.objects if noun.en_sg not in sentence.past()]
    return sentence.past(), old, rng.choice(others)


def draw_any(rng: random.Random) -> Args:
    """Draws a sentence without a place."""
    return (draw_sentence(rng),)


def draw_definite(rng: random.Random) -> Args:
    """Draws a sentence without a place and with a definite object."""
    return (draw_sentence(rng, definite=True),)


def show_past(sentence: Sentence) -> Sequence[str]:
    """Shows a sentence in the past tense."""
    return (sentence.past(),)


def show_present(sentence: Sentence) -> Sequence[str]:
    """Shows a sentence in the present tense."""
    return (sentence.present(),)


def show_words(word: str, words: Sequence[str]) -> Sequence[str]:
    """Shows a word and a list."""
    return word, listed(words)


def draw_speech(rng: random.Random) -> Args:
    """Draws a speaker and what the speaker did somewhere."""
    name = rng.choice(NAMES)
    return name, draw_sited(rng)._replace(subject=name)


def show_speech(name: str, said: Sentence) -> Sequence[str]:
    """`Anna` and `I needed a key in the hall.`"""
    rest = said.past().removeprefix(f"{said.subject} ")
    return name, f"I {rest}"


def reported(name: str, said: Sentence) -> str:
    """The sentence in reported speech: the name, a verb of saying, and `that she needed a key in the hall`."""
    rest = said.past().removeprefix(f"{said.subject} ")
    return f"{name} says that {'she' if name in _WOMEN else 'he'} {rest}"


def both(first: Sentence, second: Sentence) -> str:
    """`Emma forgot a drum in the city, and the cook ate a roll in the hall.`"""
    return f"{first.past()[:-1]}, and {second.subject} {second.past()[len(second.subject) + 1 :]}"


def show_notes(sentence: Sentence) -> Sequence[str]:
    """Who, verb, what and where as notes."""
    return (f"{sentence.subject}, {sentence.verb.en_base}, {sentence.object}, {sentence.place}",)


def draw_opposite(rng: random.Random) -> Args:
    """Draws a noun and an adjective that describes it and has an opposite."""
    return rng.choice(_DESCRIBED)
