"""The lexicon of the built-in corpora: English and German word forms, read from the tab-separated files of `lexicon/`.

One row is one lexeme. `-` stands for "none". Every inflected form that no rule predicts is spelled out in the files,
so a mistake is corrected there and nowhere else. `load_lexicon()` reads and checks the files once per process.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from llm2slm.types import UserError

GENDERS = ("m", "f", "n")
CLASSES = (
    "person",
    "animal",
    "food",
    "drink",
    "clothing",
    "text",
    "tool",
    "furniture",
    "fixture",
    "vehicle",
    "plant",
    "building",
    "room",
    "outdoor",
)
FRAMES = (
    "intr",  # The child sleeps.
    "motion",  # goes to / into a place
    "trans",  # accusative object
    "dat",  # dative object
    "ditrans",  # gives the child a book
    "ditransto",  # explains the book to the child
    "prepobj",  # waits for the bus
    "put",  # lays the book on the table (accusative of direction)
    "posture",  # lies on the table (dative of place)
    "that",  # knows that ...
    "zu",  # tries to ...
    "whether",  # an indirect question with "whether"
)


# A lexeme is loaded once, so it is equal to itself only: comparing and hashing the fields (a verb holds all its nouns)
# took more than half of the time of drawing sentences.


@dataclass(frozen=True, slots=True, eq=False)
class Noun:
    """A common noun; `place_en`/`place_de` are the prepositions of "at that place", empty where it is no place."""

    en_sg: str
    en_pl: str
    de_sg: str
    de_pl: str
    gender: str
    semantic_class: str
    de_genitive_sg: str
    weak: bool
    de_dative_pl: str
    mass: bool
    place_en: str
    place_de: str


@dataclass(frozen=True, slots=True, eq=False)
class Verb:
    """A verb in one frame. `de_3sg` and `de_past` lack the separable `prefix`; infinitive and participle hold it."""

    en_base: str
    en_3sg: str
    en_past: str
    en_participle: str
    en_particle: str
    frame: str
    de_infinitive: str
    de_3sg: str
    de_past: str
    de_participle: str
    auxiliary: str
    prefix: str
    de_preposition: str
    preposition_case: str
    subjects: tuple[Noun, ...]
    objects: tuple[Noun, ...]

    @property
    def key(self) -> str:
        """English name, unique: `wait for`, `know (that)`."""
        name = f"{self.en_base} {self.en_particle}".strip()
        return f"{name} ({self.frame})" if self.frame in ("that", "zu", "whether") else name


@dataclass(frozen=True, slots=True, eq=False)
class Adjective:
    """An adjective; `de_stem` takes the attributive endings (hoch: hoh-); `nouns` are those it can describe."""

    en: str
    en_comparative: str
    de: str
    de_stem: str
    de_comparative: str
    nouns: frozenset[str]


@dataclass(frozen=True, slots=True, eq=False)
class Word:
    """An uninflected (or closed-class) word or phrase and its category, e.g. `time_past`, `number`, `name_f`."""

    en: str
    de: str
    category: str


@dataclass(frozen=True, slots=True)
class Lexicon:
    """All lexemes, with lookup tables."""

    nouns: tuple[Noun, ...]
    verbs: tuple[Verb, ...]
    adjectives: tuple[Adjective, ...]
    others: tuple[Word, ...]
    noun: dict[str, Noun]
    verb: dict[str, Verb]
    adjective: dict[str, Adjective]
    by_class: dict[str, tuple[Noun, ...]]
    by_frame: dict[str, tuple[Verb, ...]]
    by_category: dict[str, tuple[Word, ...]]
    adjectives_of: dict[str, tuple[Adjective, ...]]

    def __len__(self) -> int:
        return len(self.nouns) + len(self.verbs) + len(self.adjectives) + len(self.others)


Row = dict[str, str]


def _rows(name: str, text: str, columns: tuple[str, ...]) -> list[tuple[int, Row]]:
    lines = text.splitlines()
    if not lines or tuple(lines[0].split("\t")) != columns:
        raise UserError(f"{name}, line 1: the header must be the tab-separated columns {', '.join(columns)}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        cells = line.split("\t")
        if len(cells) != len(columns) or not all(cell.strip() for cell in cells):
            raise UserError(
                f"{name}, line {number}: expected {len(columns)} filled columns, found {len(cells)}: {line!r}"
            )
        rows.append((number, {key: "" if cell == "-" else cell for key, cell in zip(columns, cells, strict=True)}))
    return rows


def _one_of(where: str, column: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{where}: {column} is {value!r}, expected one of {', '.join(allowed)}")


NOUN_COLUMNS = (
    "en_sg",
    "en_pl",
    "de_sg",
    "de_pl",
    "gender",
    "semantic_class",
    "de_genitive_sg",
    "weak",
    "de_dative_pl",
    "mass",
    "place_en",
    "place_de",
)
VERB_COLUMNS = (
    "en_base",
    "en_3sg",
    "en_past",
    "en_participle",
    "en_particle",
    "frame",
    "de_infinitive",
    "de_3sg",
    "de_past",
    "de_participle",
    "auxiliary",
    "prefix",
    "de_preposition",
    "preposition_case",
    "subject_classes",
    "object_classes",
)
ADJECTIVE_COLUMNS = ("en", "en_comparative", "de", "de_stem", "de_comparative", "noun_classes", "nouns")
OTHER_COLUMNS = ("en", "de", "category")


def parse_nouns(name: str, text: str) -> tuple[Noun, ...]:
    """Nouns from the text of a TSV file; raises `UserError` naming file and line."""
    nouns = []
    for number, row in _rows(name, text, NOUN_COLUMNS):
        where = f"{name}, line {number}"
        _one_of(where, "gender", row["gender"], GENDERS)
        _one_of(where, "semantic_class", row["semantic_class"], CLASSES)
        for column in ("weak", "mass"):
            _one_of(where, column, row[column], ("yes", "no"))
        if not row["de_sg"][0].isupper():
            raise UserError(f"{where}: the German noun {row['de_sg']!r} must begin with a capital letter")
        nouns.append(
            Noun(
                en_sg=row["en_sg"],
                en_pl=row["en_pl"],
                de_sg=row["de_sg"],
                de_pl=row["de_pl"],
                gender=row["gender"],
                semantic_class=row["semantic_class"],
                de_genitive_sg=row["de_genitive_sg"],
                weak=row["weak"] == "yes",
                de_dative_pl=row["de_dative_pl"],
                mass=row["mass"] == "yes",
                place_en=row["place_en"],
                place_de=row["place_de"],
            )
        )
    return tuple(nouns)


def select_nouns(where: str, spec: str, nouns: tuple[Noun, ...]) -> tuple[Noun, ...]:
    """Nouns of the comma-separated classes, or after a leading `=` the nouns listed by their English singular."""
    wanted = [item for item in spec.lstrip("=").split(",") if item]
    keys = [noun.en_sg if spec.startswith("=") else noun.semantic_class for noun in nouns]
    unknown = set(wanted) - set(keys)
    if unknown:
        raise UserError(f"{where}: unknown noun or class {', '.join(sorted(unknown))}")
    return tuple(noun for noun, key in zip(nouns, keys, strict=True) if key in wanted)


def parse_verbs(name: str, text: str, nouns: tuple[Noun, ...]) -> tuple[Verb, ...]:
    """Verbs from the text of a TSV file; raises `UserError` naming file and line."""
    verbs = []
    for number, row in _rows(name, text, VERB_COLUMNS):
        where = f"{name}, line {number}"
        _one_of(where, "frame", row["frame"], FRAMES)
        _one_of(where, "auxiliary", row["auxiliary"], ("haben", "sein"))
        _one_of(where, "preposition_case", row["preposition_case"], ("", "acc", "dat"))
        if not row["de_infinitive"].startswith(row["prefix"]):
            raise UserError(f"{where}: {row['de_infinitive']!r} does not begin with its prefix {row['prefix']!r}")
        subjects = select_nouns(where, row["subject_classes"], nouns)
        objects = select_nouns(where, row["object_classes"], nouns)
        verbs.append(
            Verb(
                en_base=row["en_base"],
                en_3sg=row["en_3sg"],
                en_past=row["en_past"],
                en_participle=row["en_participle"],
                en_particle=row["en_particle"],
                frame=row["frame"],
                de_infinitive=row["de_infinitive"],
                de_3sg=row["de_3sg"],
                de_past=row["de_past"],
                de_participle=row["de_participle"],
                auxiliary=row["auxiliary"],
                prefix=row["prefix"],
                de_preposition=row["de_preposition"],
                preposition_case=row["preposition_case"],
                subjects=subjects,
                objects=objects,
            )
        )
    return tuple(verbs)


def parse_adjectives(name: str, text: str, nouns: tuple[Noun, ...]) -> tuple[Adjective, ...]:
    """Adjectives from the text of a TSV file; raises `UserError` naming file and line."""
    adjectives = []
    for number, row in _rows(name, text, ADJECTIVE_COLUMNS):
        where = f"{name}, line {number}"
        described = select_nouns(where, row["noun_classes"], nouns) + select_nouns(where, "=" + row["nouns"], nouns)
        names = frozenset(noun.en_sg for noun in described)
        adjectives.append(
            Adjective(
                en=row["en"],
                en_comparative=row["en_comparative"],
                de=row["de"],
                de_stem=row["de_stem"],
                de_comparative=row["de_comparative"],
                nouns=names,
            )
        )
    return tuple(adjectives)


def _unique(name: str, keys: list[str]) -> None:
    seen: set[str] = set()
    for number, key in enumerate(keys, start=2):
        if key in seen:
            raise UserError(f"{name}, line {number}: {key!r} is there twice")
        seen.add(key)


@lru_cache(maxsize=1)
def load_lexicon() -> Lexicon:
    """The lexicon of the package, read and checked once."""
    folder = files("llm2slm.builtin.corpora").joinpath("lexicon")
    names = ("nouns.tsv", "verbs.tsv", "adjectives.tsv", "others.tsv")
    text = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in names}
    nouns = parse_nouns("nouns.tsv", text["nouns.tsv"])
    verbs = parse_verbs("verbs.tsv", text["verbs.tsv"], nouns)
    adjectives = parse_adjectives("adjectives.tsv", text["adjectives.tsv"], nouns)
    others = tuple(
        Word(row["en"], row["de"], row["category"]) for _, row in _rows("others.tsv", text["others.tsv"], OTHER_COLUMNS)
    )
    _unique("nouns.tsv", [noun.en_sg for noun in nouns])
    _unique("verbs.tsv", [verb.key for verb in verbs])
    _unique("adjectives.tsv", [adjective.en for adjective in adjectives])
    _unique("others.tsv", [f"{word.en} ({word.category})" for word in others])
    return Lexicon(
        nouns,
        verbs,
        adjectives,
        others,
        {noun.en_sg: noun for noun in nouns},
        {verb.key: verb for verb in verbs},
        {adjective.en: adjective for adjective in adjectives},
        {name: tuple(noun for noun in nouns if noun.semantic_class == name) for name in CLASSES},
        {name: tuple(verb for verb in verbs if verb.frame == name) for name in FRAMES},
        {name: tuple(word for word in others if word.category == name) for name in {w.category for w in others}},
        {noun.en_sg: tuple(adj for adj in adjectives if noun.en_sg in adj.nouns) for noun in nouns},
    )
