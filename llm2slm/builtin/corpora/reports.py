"""Built-in summarization corpus: short English reports whose summary needs several of their sentences.

Each kind draws the facts of one small event (a match, a vote, a delayed train ...), renders them in varied order
and wording among irrelevant sentences, and derives the summary from them: a difference, a sum, a changed date,
the last owner. The summary is a function of the report's text, and no single sentence of
the report holds all of it.
"""

import itertools
import random
from collections.abc import Callable

from llm2slm.builtin.corpora.reports_life import (
    accident,
    appointment,
    delivery,
    farm,
    price,
    race,
    trip,
    weather,
)
from llm2slm.builtin.corpora.story import COLORS, DAYS, MONTHS, NAMES, NUMBERS, PLACES, TOWNS, Story, count, tell


def match(rng: random.Random) -> Story:
    """A game of two teams; the summary needs both scores."""
    home, guest = rng.sample(TOWNS, 2)
    a, b, old = rng.randint(1, 15), rng.randint(1, 15), rng.randint(1, 15)
    star, other = rng.sample(NAMES, 2)
    day, place = (rng.choice(DAYS), rng.choice(("new", "old")))
    opening = (
        f"The team from {home} played against {guest} in the {place} hall.",
        f"{home} and {guest} met again in the {place} hall.",
        f"Everyone in {home} had waited for the match against {guest}.",
    )
    facts = [
        (f"{t} scored {count(n, 'point')}.", f"The players from {t} made {count(n, 'point')}.")
        for t, n in ((home, a), (guest, b))
    ]
    facts.append((f"The match took place on {day}.", f"The game was on a cold {day}."))
    facts.append((f"The best player was {star}.", f"No other player was as good as {star}."))
    noise = (
        f"A year ago, {home} had reached {count(old, 'point')}.",
        f"{other} could not play because of a cold.",
        f"A ticket cost {count(rng.randint(2, 9), 'euro')}.",
        "In the break, the players drank tea.",
    )
    if a == b:
        result = f"Neither {home} nor {guest} won on {day}"
    else:
        winner, loser = (home, guest) if a > b else (guest, home)
        result = f"{winner} beat {loser} by {count(abs(a - b), 'point')} on {day}"
    return Story(opening, facts, noise, f"{result}, and {star} was the best player.")


def departure(rng: random.Random) -> Story:
    """A delayed train or ship; the summary needs the planned time, the delay and its cause."""
    vehicle = rng.choice(("train", "bus", "ship", "plane"))
    goal, home = rng.sample(TOWNS, 2)
    hour, late = rng.randint(1, 9), rng.randint(1, 3)
    cause = rng.choice(("a storm", "heavy snow", "thick fog", "a strike", "a broken engine"))
    opening = (
        f"Many people in {home} wanted to go to {goal} by {vehicle}.",
        f"The {vehicle} from {home} to {goal} was full.",
    )
    facts = [
        (
            f"The {vehicle} should leave at {NUMBERS[hour]} o'clock.",
            f"The timetable said {NUMBERS[hour]} o'clock.",
        ),
        (
            f"The passengers had to wait {count(late, 'hour')} longer.",
            f"The {vehicle} left {count(late, 'hour')} too late.",
        ),
        (f"The reason was {cause}.", f"{cause.capitalize()} was the cause of the trouble."),
    ]
    noise = (
        f"{rng.choice(NAMES)} bought {count(rng.randint(2, 9), 'bottle')} of water for the children.",
        f"The ticket to {goal} cost {count(rng.randint(10, 20), 'euro')}.",
        f"A family from {rng.choice(TOWNS)} went home again.",
        "A tired woman read a book.",
    )
    summary = f"Because of {cause}, the {vehicle} to {goal} left at {NUMBERS[hour + late]} o'clock"
    return Story(opening, facts, noise, f"{summary} instead of {NUMBERS[hour]}.")


def fundraiser(rng: random.Random) -> Story:
    """A collection of money; the summary needs both gifts and the price."""
    house, town = (rng.choice(("school", "hospital", "church", "museum", "library")), rng.choice(TOWNS))
    goal = rng.choice(("a new roof", "a new kitchen", "new windows", "new chairs", "a bigger garden"))
    a, b = rng.randint(1, 10), rng.randint(1, 9)
    need = min(20, max(1, a + b + rng.randint(-3, 5)))
    giver, seller = (
        rng.choice(("an old doctor", "a rich lady", "a bank")),
        rng.choice(("children", "parents")),
    )
    opening = (
        f"The {house} in {town} asked people for help.",
        f"The {house} in {town} had a party to raise money.",
    )
    facts = [
        (f"The money was for {goal}.", f"The director wanted {goal}."),
        (
            f"In all, {NUMBERS[need]} thousand euros were needed.",
            f"The price was {NUMBERS[need]} thousand euros.",
        ),
        (
            f"The {seller} sold cakes for {NUMBERS[a]} thousand euros.",
            f"A concert of the {seller} brought {NUMBERS[a]} thousand euros.",
        ),
        (
            f"{giver.capitalize()} gave {NUMBERS[b]} thousand euros.",
            f"Another {NUMBERS[b]} thousand euros came from {giver}.",
        ),
    ]
    noise = (
        f"About {NUMBERS[rng.randint(2, 9)]} hundred people came.",
        f"{rng.choice(NAMES)} sang a song.",
        f"A cup of tea cost {count(rng.randint(1, 3), 'euro')}.",
        f"The party ended at {NUMBERS[rng.randint(6, 11)]} o'clock.",
    )
    end = "which is enough" if a + b >= need else f"but it still needs {NUMBERS[need - a - b]} thousand"
    summary = f"The {house} in {town} raised {NUMBERS[a + b]} thousand euros for {goal}, {end}."
    return Story(opening, facts, noise, summary)


def lost_and_found(rng: random.Random) -> Story:
    """A lost object passed on two or three times; the summary needs finder, owner and last holder."""
    thing = f"{rng.choice(COLORS)} {rng.choice(('bag', 'coat', 'hat', 'book', 'umbrella', 'bicycle'))}"
    noun = thing.split()[1]
    owner, finder, *people = rng.sample(NAMES, 6)
    chain = [finder, *people[: rng.randint(2, 3)]]
    if rng.random() < 0.4:
        chain[-1] = owner
    place, other = rng.sample(list(PLACES), 2)
    where, town, shop = (
        f"{PLACES[place]} the {place}",
        rng.choice(TOWNS),
        rng.choice(("bank", "shop", "school")),
    )
    opening = (f"Someone lost a {thing} in {town}.", f"There was a {thing} on the ground in {town}.")
    facts = [
        (
            f"{finder} found the {noun} {where}.",
            f"{where.capitalize()}, {finder} saw the {noun} and took it along.",
        )
    ]
    facts += [
        (f"{a} gave the {noun} to {b}.", f"Then {b} took the {noun} from {a}.") for a, b in itertools.pairwise(chain)
    ]
    facts.append((f"The {noun} belongs to {owner}.", f"The owner of the {noun} is {owner}."))
    noise = (
        f"{people[3]} had lost a key {PLACES[other]} the {other} the week before.",
        f"{people[3]} was working in the {shop} and saw nothing.",
        "A policeman asked some questions.",
        f"Nobody looked for the {noun} at first.",
    )
    end = f"{owner} has it again" if chain[-1] == owner else f"{chain[-1]} has it now"
    return Story(opening, facts, noise, f"{finder} found {owner}'s {thing} {where}, and {end}.", ordered=True)


def vote(rng: random.Random) -> Story:
    """A vote on a plan; the summary needs both counts and what was to follow from the result."""
    town, plan = (
        rng.choice(TOWNS),
        rng.choice(("bridge", "school", "park", "hospital", "street", "station")),
    )
    yes, no = rng.sample(range(1, 16), 2)
    month, other = (rng.choice(MONTHS), rng.choice(("zoo", "theater", "museum", "library")))
    opening = (
        f"The council of {town} talked about a new {plan}.",
        f"A new {plan} was the topic of the council of {town}.",
    )
    facts = [
        (f"{count(yes, 'member').capitalize()} voted for the plan.", f"The plan got {count(yes, 'vote')}."),
        (
            f"{count(no, 'member').capitalize()} voted against the plan.",
            f"Against the plan, there were {count(no, 'vote')}.",
        ),
        (f"With a yes, work begins in {month}.", f"After a yes, builders can begin in {month}."),
        (f"With a no, the money goes to the {other}.", f"After a no, the {other} gets the money."),
    ]
    noise = (
        f"The meeting took {count(rng.randint(2, 5), 'hour')}.",
        f"{rng.choice(NAMES)} spoke about the trees and the noise.",
        f"The {plan} would cost {count(rng.randint(2, 9), 'million', 'million')} euros.",
    )
    margin = count(abs(yes - no), "vote")
    end = f"accepted the new {plan} by {margin}, so work begins in {month}."
    if no > yes:
        end = f"rejected the new {plan} by {margin}, so the money goes to the {other}."
    return Story(opening, facts, noise, f"The council of {town} {end}")


KINDS: dict[str, Callable[[random.Random], Story]] = {
    kind.__name__: kind
    for kind in (
        match, departure, fundraiser, lost_and_found, vote, weather, price,
        delivery, accident, trip, race, farm, appointment,
    )
}  # fmt: skip
_KINDS = tuple(KINDS.values())


def report(rng: random.Random) -> tuple[str, str]:
    """Draws one report.

    Args:
        rng: source of all randomness; the same state gives the same report.

    Returns:
        The report (4 to 7 sentences) and its summary (one or two sentences).
    """
    story = rng.choice(_KINDS)(rng)
    return tell(rng, story), story.summary
