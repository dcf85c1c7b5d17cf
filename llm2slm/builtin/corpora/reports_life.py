"""Report kinds of daily life: weather, prices, deliveries, accidents, trips, races, farms, appointments."""

import random
from collections.abc import Sequence

from llm2slm.builtin.corpora.story import COLORS, DAYS, MONTHS, NAMES, NUMBERS, PLACES, TOWNS, Story, count


def weather(rng: random.Random) -> Story:
    """A day's weather; the summary needs temperature, change, rain and the plan for rain."""
    town, day = rng.choice(TOWNS), rng.choice(DAYS)
    start, change, warmer = rng.randint(6, 14), rng.randint(1, 5), rng.random() < 0.5
    event = rng.choice(("concert", "market", "party", "wedding"))
    dry_place, wet_place = (
        rng.choice(("park", "garden", "street")),
        rng.choice(("church", "school", "hall")),
    )
    wet = rng.random() < 0.5
    opening = (f"People in {town} looked at the sky on {day}.", f"On {day}, {town} had a big {event}.")
    facts = [
        (
            f"In the morning, it was {count(start, 'degree')}.",
            f"The day began with {count(start, 'degree')}.",
        ),
        (f"By the evening, it was {count(change, 'degree')} {'warmer' if warmer else 'colder'}.",),
        (
            f"The {event} should be in the {dry_place}, or in the {wet_place} if it rained.",
            f"In dry weather, the {event} should be in the {dry_place}, and otherwise in the {wet_place}.",
        ),
        ("It began to rain at noon.", "Heavy rain fell all day.") if wet else ("It stayed dry.", "No rain fell."),
    ]
    noise = (
        f"The year before, it had been {count(rng.randint(5, 19), 'degree')}.",
        f"{rng.choice(NAMES)} had forgotten a coat.",
        "A strong wind came from the sea.",
        f"About {NUMBERS[rng.randint(2, 9)]} hundred guests came.",
    )
    place, evening = (wet_place if wet else dry_place, start + change if warmer else start - change)
    summary = f"The {event} in {town} was in the {place}, and it was {count(evening, 'degree')} in the evening."
    return Story(opening, facts, noise, summary)


def price(rng: random.Random) -> Story:
    """A price that changed; the summary needs the old price, the new one and the reason."""
    town = rng.choice(TOWNS)
    good, rival = rng.sample(("a box of apples", "a basket of eggs", "a kilo of cheese", "a bag of coffee"), 2)
    old, new = rng.sample(range(2, 18), 2)
    up = ("the harvest was bad", "the shops have too little", "the streets are blocked")
    down = ("the harvest was good", "the shops have too much", "a new market has opened")
    reason = rng.choice(up if new > old else down)
    opening = (f"People at the market in {town} talk about prices.", f"{town} has new prices.")
    facts = [
        (
            f"Last week, {good} cost {count(old, 'euro')}.",
            f"The old price of {good} was {count(old, 'euro')}.",
        ),
        (f"Today, {good} costs {count(new, 'euro')}.", f"Now people pay {count(new, 'euro')} for {good}."),
        (f"Farmers say that {reason}.", f"The sellers explain that {reason}."),
    ]
    noise = (
        f"As always, {rival} costs {count(rng.randint(2, 17), 'euro')}.",
        f"{rng.choice(NAMES)} comes every {rng.choice(DAYS)} and buys flowers.",
        "A cook from a hotel looks for fresh fish.",
        f"The market opens at {NUMBERS[rng.randint(5, 9)]} o'clock.",
    )
    less = "more" if new > old else "less"
    summary = f"In {town}, {good} costs {count(abs(new - old), 'euro')} {less} than last week because {reason}."
    return Story(opening, facts, noise, summary)


def delivery(rng: random.Random) -> Story:
    """An order brought in two parts; the summary needs the order, both parts and the new date."""
    thing, house = (
        rng.choice(("chair", "table", "lamp", "window", "bed")),
        rng.choice(("school", "hotel", "library")),
    )
    town, day = rng.choice(TOWNS), rng.choice(DAYS)
    a, b, missing = rng.randint(1, 6), rng.randint(1, 6), rng.randint(0, 5)
    order = count(a + b + missing, thing)
    opening = (
        f"The {house} in {town} needed new {thing}s.",
        f"The old {thing}s of the {house} in {town} broke.",
    )
    facts = [
        (f"The director ordered {order}.", f"The order was for {order}."),
        (
            f"The first truck brought {count(a, thing)}.",
            f"{count(a, thing).capitalize()} came with the first truck.",
        ),
        (
            f"The second truck brought {count(b, thing)}.",
            f"{count(b, thing).capitalize()} came with the second truck.",
        ),
        (f"The next truck comes on {day}.", f"On {day}, the company will send the next truck."),
    ]
    noise = (
        f"{rng.choice(NAMES)} carried everything into the house.",
        f"One {thing} costs {count(rng.randint(12, 20), 'euro')}.",
        f"Last year, the {house} had bought {NUMBERS[rng.randint(2, 9)]} computers.",
        "The driver drank a coffee in the kitchen.",
    )
    verb, pronoun = ("is", "it") if missing == 1 else ("are", "they")
    if missing:
        rest = f"{NUMBERS[missing]} {verb} missing, and {pronoun} will come on {day}"
        summary = f"The {house} in {town} got {count(a + b, thing)}; {rest}."
    else:
        summary = f"The {house} in {town} got all of its {order}, and nothing is missing."
    return Story(opening, facts, noise, summary)


def accident(rng: random.Random) -> Story:
    """A road accident; the summary needs what happened, why, and both counts of injured people."""
    town, car = rng.choice(TOWNS), rng.choice(("car", "bus", "truck", "taxi"))
    hit = rng.choice(("tree", "wall", "house", "bridge", "fence"))
    cause = rng.choice(
        (
            "the street was wet",
            "the driver was tired",
            "the brakes did not work",
            "a dog ran across the street",
        )
    )
    men, women = rng.randint(0, 4), rng.randint(0, 4)
    opening = (f"There was an accident with a {car} in {town}.", f"A {car} had an accident in {town}.")
    facts = [
        (f"The {car} hit a {hit}.", f"The {car} drove into a {hit}."),
        (f"The police say that {cause}.", f"People who saw it say that {cause}."),
        (f"{count(men, 'man', 'men').capitalize()} {'was' if men == 1 else 'were'} hurt.",),
        (f"{count(women, 'woman', 'women').capitalize()} {'was' if women == 1 else 'were'} hurt.",),
    ]
    noise = (
        f"{count(rng.randint(2, 9), 'child', 'children').capitalize()} saw the accident from a window.",
        f"The accident happened at {NUMBERS[rng.randint(1, 12)]} o'clock on {rng.choice(DAYS)}.",
        f"The street was closed for {count(rng.randint(2, 6), 'hour')}.",
        f"The {car} was {count(rng.randint(2, 12), 'year')} old.",
    )
    hurt = men + women
    end = (
        "Nobody was hurt"
        if not hurt
        else f"{count(hurt, 'person', 'people').capitalize()} {'was' if hurt == 1 else 'were'} hurt"
    )
    return Story(opening, facts, noise, f"In {town}, a {car} hit a {hit} because {cause}. {end}.")


def trip(rng: random.Random) -> Story:
    """A trip in two legs; the summary needs both times and both vehicles."""
    a, b = rng.sample(NAMES, 2)
    start, middle, goal = rng.sample(TOWNS, 3)
    x, y = rng.randint(1, 9), rng.randint(1, 9)
    first, second = rng.sample(("train", "bus", "car", "ship"), 2)
    opening = (f"{a} and {b} made a trip last week.", f"{a} and {b} wanted to visit a friend.")
    facts = [
        (
            f"They went from {start} to {middle} by {first}, which took {count(x, 'hour')}.",
            f"The {first} from {start} to {middle} needed {count(x, 'hour')}.",
        ),
        (
            f"From {middle}, they went to {goal} by {second} for {count(y, 'hour')}.",
            f"Then a {second} brought them to {goal} in {count(y, 'hour')}.",
        ),
    ]
    noise = (
        f"They were away for {count(rng.randint(2, 9), 'day')} and liked the food.",
        f"{rng.choice((a, b))} bought a {rng.choice(COLORS)} hat.",
        f"A room in the hotel cost {count(rng.randint(12, 20), 'euro')}.",
        f"The weather in {goal} was colder than in {start}.",
    )
    summary = f"{a} and {b} went from {start} to {goal} by {first} and {second} in {count(x + y, 'hour')}."
    return Story(opening, facts, noise, summary, ordered=True)


def race(rng: random.Random) -> Story:
    """A race of three; the summary needs one time and two comparisons."""
    town, kind = rng.choice(TOWNS), rng.choice(("run", "swim"))
    runners = rng.sample(NAMES, 3)
    times = rng.sample(range(8, 19), 3)
    gap = [times[1] - times[0], times[2] - times[1]]
    opening = (
        f"{', '.join(runners[:2])} and {runners[2]} had a race in {town}.",
        f"{town} held a race, and three people took part.",
    )
    facts: list[Sequence[str]] = [
        (
            f"{runners[0]} needed {count(times[0], 'minute')}.",
            f"{runners[0]}'s time was {count(times[0], 'minute')}.",
        )
    ]
    for i in (1, 2):
        word = "slower" if gap[i - 1] > 0 else "faster"
        facts.append((f"{runners[i]} was {count(abs(gap[i - 1]), 'minute')} {word} than {runners[i - 1]}.",))
    where = "around the park" if kind == "run" else "across the lake"
    noise = (
        f"The way was {NUMBERS[rng.randint(4, 9)]} hundred meters long.",
        f"Everyone had to {kind} {where}.",
        f"A year ago, the best time had been {count(rng.randint(7, 19), 'minute')}.",
        "The winner got a bottle of good wine.",
    )
    order = sorted(range(3), key=times.__getitem__)
    first, second, last = (runners[i] for i in order)
    summary = f"{first} won the race in {town} in {count(min(times), 'minute')}, before {second} and {last}."
    return Story(opening, facts, noise, summary)


def farm(rng: random.Random) -> Story:
    """A farm's animals; the summary needs the first number, what was sold and what was born."""
    owner, buyer = rng.sample(NAMES, 2)
    town, animal = rng.choice(TOWNS), rng.choice(("cow", "horse", "pig", "goat", "dog"))
    start, sold, born = rng.randint(4, 12), rng.randint(1, 3), rng.randint(1, 6)
    opening = (f"{owner} has a farm near {town}.", f"On a hill near {town} is {owner}'s farm.")
    facts = [
        (f"In January, there were {count(start, animal)}.", f"The year began with {count(start, animal)}."),
        (
            f"{buyer} bought {count(sold, animal)}.",
            f"In {rng.choice(MONTHS)}, {buyer} took away {count(sold, animal)}.",
        ),
        (
            f"In summer, {count(born, f'young {animal}')} {'was' if born == 1 else 'were'} born.",
            f"The summer brought {count(born, f'young {animal}')}.",
        ),
    ]
    noise = (
        f"The farm also has {count(rng.randint(2, 9), 'cat')}.",
        f"The work begins at {NUMBERS[rng.randint(4, 7)]} o'clock every morning.",
        "The old house needs a new door.",
        f"A neighbor lost {count(rng.randint(2, 5), 'chicken')} in winter.",
    )
    change = born - sold
    end = (
        f"{NUMBERS[abs(change)]} {'more' if change > 0 else 'fewer'} than in January"
        if change
        else "as many as in January"
    )
    return Story(opening, facts, noise, f"{owner}'s farm near {town} now has {count(start + change, animal)}, {end}.")


def appointment(rng: random.Random) -> Story:
    """A meeting moved to another day and perhaps place; the summary needs day, shift and reason."""
    a, b = rng.sample(NAMES, 2)
    place, other = rng.sample(list(PLACES), 2)
    day, shift = rng.randint(0, 6), rng.randint(1, 3)
    reason, moved = (rng.choice(("has to work", "is ill", "has an exam", "has visitors")), rng.random() < 0.5)
    opening = (f"{a} wants to talk to {b} about a present.", f"{a} and {b} have not met for a long time.")
    facts = [
        (
            f"{a} had the idea to meet {PLACES[place]} the {place} on {DAYS[day]}.",
            f"The plan was the {place} on {DAYS[day]}.",
        ),
        (f"But {b} {reason} on that day.",),
        (
            f"They will meet {count(shift, 'day')} later.",
            f"So they chose a date {count(shift, 'day')} later.",
        ),
        (f"The {place} will be closed then, so they take the {other}.",)
        if moved
        else (f"The {place} is open then, too.", f"On that day, the {place} is open."),
    ]
    noise = (
        f"{rng.choice((a, b))} will bring {count(rng.randint(2, 6), 'book')}.",
        f"The bus to the {other} takes {count(rng.randint(5, 20), 'minute')}.",
        "They want to drink tea afterwards.",
        f"{rng.choice((a, b))} has already bought some flowers.",
    )
    goal = other if moved else place
    summary = f"{a} and {b} will meet {PLACES[goal]} the {goal} on {DAYS[(day + shift) % 7]}"
    return Story(opening, facts, noise, f"{summary} because {b} {reason} on {DAYS[day]}.", ordered=True)
