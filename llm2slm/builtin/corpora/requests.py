"""Built-in instruction corpus: short English requests over the lexicon, each with the one right answer.

A kind of request draws its arguments, shows them in one of several wordings, and computes the answer from the
arguments alone.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llm2slm.builtin.corpora.request_kinds import (
    LEXICON,
    OPPOSITES,
    PAST,
    Args,
    arithmetic,
    as_json,
    because,
    both,
    compare,
    draw_any,
    draw_because,
    draw_comparison,
    draw_definite,
    draw_graded,
    draw_group,
    draw_having,
    draw_json,
    draw_opposite,
    draw_order,
    draw_pattern,
    draw_position,
    draw_replace,
    draw_speech,
    draw_story,
    draw_sum,
    draw_verbs,
    extract,
    german,
    having,
    listed,
    members,
    nouns,
    outer,
    reported,
    show_having,
    show_list,
    show_notes,
    show_order,
    show_past,
    show_pattern,
    show_present,
    show_speech,
    show_story,
    show_words,
    story_answer,
)
from llm2slm.builtin.corpora.sentences import Sentence, draw_pair, draw_sited
from llm2slm.builtin.corpora.story import NUMBERS


@dataclass(frozen=True)
class Kind:
    """One kind of request.

    `draw(rng)` gives the arguments, `answer(*arguments)` the answer, `show(*arguments)` the texts that fill a
    wording.
    """

    wordings: tuple[str, ...]
    draw: Callable[[random.Random], Args]
    answer: Callable[..., str]
    show: Callable[..., Sequence[str]] = lambda *arguments: [str(item) for item in arguments]


KINDS: dict[str, Kind] = {
    "plural": Kind(
        (
            "Write the plural of each word: {0}.",
            "What are the plural forms of these nouns? {0}",
            "One is not enough. Make these words plural: {0}.",
        ),
        nouns(2, 4),
        lambda words: listed([LEXICON.noun[word].en_pl for word in words]),
        show_list,
    ),
    "past_tense": Kind(
        (
            "Give the past tense of these verbs: {0}.",
            "What is the past form of each verb? {0}",
            "Today and yesterday: put these verbs into the past: {0}.",
        ),
        draw_verbs,
        lambda words: listed([PAST[word] for word in words]),
        show_list,
    ),
    "comparative": Kind(
        (
            "Write the comparative of each word: {0}.",
            "Compare with these words, as in old and older: {0}.",
            "What are the comparative forms of these adjectives? {0}",
        ),
        draw_graded,
        lambda words: listed([LEXICON.adjective[word].en_comparative for word in words]),
        show_list,
    ),
    "german": Kind(
        (
            "What are these words in German? {0}",
            "Give the German nouns with their articles: {0}.",
            "A friend learns German. Translate these words: {0}.",
        ),
        nouns(1, 3),
        german,
        show_list,
    ),
    "to_past": Kind(
        (
            "Rewrite the sentence in the past: {0}",
            "Say that it happened yesterday, with the verb in the past. {0}",
            "Change the verb to the past tense. {0}",
        ),
        draw_any,
        Sentence.past,
        show_present,
    ),
    "to_future": Kind(
        (
            "Rewrite the sentence with will: {0}",
            "Put this sentence into the future. {0}",
            "It has not happened yet. Write it with will. {0}",
        ),
        draw_any,
        Sentence.future,
        show_present,
    ),
    "negative": Kind(
        (
            "Make this sentence negative. {0}",
            "That is not true. Write the sentence with not: {0}",
            "Rewrite it with did not: {0}",
        ),
        draw_definite,
        Sentence.negative,
        show_past,
    ),
    "question": Kind(
        (
            "Turn this sentence into a question. {0}",
            "Ask whether this is true: {0}",
            "Write a question that begins with Did. {0}",
        ),
        draw_any,
        Sentence.question,
        show_past,
    ),
    "passive": Kind(
        (
            "Rewrite the sentence in the passive. {0}",
            "Begin with the object and use by: {0}",
            "Put this sentence into the passive voice: {0}",
        ),
        draw_definite,
        Sentence.passive,
        show_past,
    ),
    "replace": Kind(
        (
            "Replace {1} with {2} in this sentence. {0}",
            "Write {2} instead of {1}: {0}",
            "{0} Say it again with {2} instead of {1}.",
        ),
        draw_replace,
        lambda text, old, new: text.replace(f" {old}.", f" {new}."),
    ),
    "sort": Kind(
        (
            "Sort these words from A to Z: {0}.",
            "Put the words into alphabetical order. {0}",
            "In which order are these words in a dictionary? {0}",
        ),
        nouns(3, 5),
        lambda words: listed(sorted(words)),
        show_list,
    ),
    "reverse": Kind(
        (
            "Write this list backwards, from the last word to the first: {0}.",
            "Reverse the order of these words. {0}",
            "Begin with the last word and turn the list around: {0}.",
        ),
        nouns(3, 5),
        lambda words: listed(words[::-1]),
        show_list,
    ),
    "position": Kind(
        (
            "What is the {0} word of this list? {1}",
            "Find the {0} word: {1}.",
            "Read the list and write only the {0} word. {1}",
        ),
        draw_position,
        lambda word, words: str(words[{"first": 0, "second": 1, "third": 2, "last": -1}[word]]),
        show_words,
    ),
    "count": Kind(
        (
            "How many words are in this list? {0}",
            "Count these words and write the number in letters: {0}.",
            "Tell me how many words there are here: {0}.",
        ),
        nouns(2, 7),
        lambda words: f"There are {NUMBERS[len(words)]}.",
        show_list,
    ),
    "members": Kind(
        (
            "Which of these words are {0}? {1}",
            "Pick out the {0}: {1}.",
            "Keep only the {0} and leave out the rest: {1}.",
        ),
        draw_group,
        members,
        show_words,
    ),
    "numbered": Kind(
        (
            "Make a numbered list of these words: {0}.",
            "Write the words with numbers before them. {0}",
            "Number these things, beginning with 1: {0}.",
        ),
        nouns(2, 4),
        lambda words: " ".join(f"{i}. {word}" for i, word in enumerate(words, start=1)),
        show_list,
    ),
    "json": Kind(
        (
            "Write this as JSON with name, job and town: {0} is a {1} from {2}.",
            "{0} lives in {2} and works as a {1}. Make a JSON line with name, job and town.",
            "Fill in name, job and town as JSON. The {1} {0} comes from {2}.",
        ),
        draw_json,
        as_json,
    ),
    "compare": Kind(
        (
            "Which number is {2}, {0} or {1}?",
            "Compare {0} and {1}. Which is {2}?",
            "Look at the numbers {0} and {1} and tell me which is {2}.",
        ),
        draw_comparison,
        compare,
        lambda a, b, word: (NUMBERS[a], NUMBERS[b], word),
    ),
    "sum": Kind(
        (
            "How much is {0} {2} {1}? Write it in words.",
            "Work out the result in words: {0} {2} {1}.",
            "I do not know what {0} {2} {1} is. Help me.",
        ),
        draw_sum,
        arithmetic,
        lambda a, b, sign: (NUMBERS[a], NUMBERS[b], sign),
    ),
    "having": Kind(
        (
            "{0} How many {2} does {1} have now?",
            "How many {2} does {1} have in the end? {0}",
            "{0} Work out how many {2} there are now.",
        ),
        draw_having,
        having,
        show_having,
    ),
    "pattern": Kind(
        (
            "Which number comes next? {0}",
            "Complete the pattern with one more number: {0}, ...",
            "These numbers follow a rule. Write the next one: {0}.",
        ),
        draw_pattern,
        lambda start, step: NUMBERS[start + 3 * step],
        show_pattern,
    ),
    "order": Kind(
        ("{0} {1}", "Answer with a sentence. {0} {1}", "{1} You know this: {0}"),
        draw_order,
        outer,
        show_order,
    ),
    "story": Kind(
        ("{0} {1}", "Read the story and answer. {0} {1}", "{1} Here is what happened: {0}"),
        draw_story,
        story_answer,
        show_story,
    ),
    "extract": Kind(
        (
            "Say who, what and where. {0}",
            "Find the person, the thing and the place in this sentence: {0}",
            "Sort the facts into who, what and where: {0}",
        ),
        lambda rng: (draw_sited(rng),),
        extract,
        show_past,
    ),
    "opposite": Kind(
        (
            "Say the opposite: The {0} is {1}.",
            "The {0} is {1}. Write the sentence with the opposite adjective.",
            "Change the adjective to its opposite. The {0} is {1}.",
        ),
        draw_opposite,
        lambda noun, adjective: f"The {noun} is {OPPOSITES[adjective]}.",
    ),
    "reported": Kind(
        (
            "{0} says: {1} Report this with the word that.",
            "Tell a friend what {0} says, with says that. {0}: {1}",
            "What does {0} say? Begin with {0} says that. {0}: {1}",
        ),
        draw_speech,
        reported,
        show_speech,
    ),
    "both": Kind(
        (
            "Join the two sentences with and. {0} {1}",
            "Use and to make one sentence: {0} {1}",
            "Make one long sentence with and. {0} {1}",
        ),
        draw_pair,
        both,
        lambda first, second: (first.past(), second.past()),
    ),
    "compose": Kind(
        (
            "Write a sentence in the past from these words: {0}.",
            "Make a sentence about yesterday from the notes: {0}.",
            "What happened? Use all of these notes: {0}.",
        ),
        lambda rng: (draw_sited(rng),),
        Sentence.past,
        show_notes,
    ),
    "because": Kind(
        (
            "Join the sentences with because. {0} is {1}. {2}",
            "Use because to make one sentence: {0} is {1}. {2}",
            "{2} That is why {0} is {1}. Write it with because.",
        ),
        draw_because,
        because,
        lambda name, adjective, sentence: (name, adjective, sentence.past()),
    ),
}
_KINDS = tuple(KINDS.values())


def request(rng: random.Random) -> tuple[str, str]:
    """Draws one request.

    Args:
        rng: source of all randomness; the same state gives the same request.

    Returns:
        The request and its answer.
    """
    kind = rng.choice(_KINDS)
    arguments = kind.draw(rng)
    return rng.choice(kind.wordings).format(*kind.show(*arguments)), kind.answer(*arguments)
