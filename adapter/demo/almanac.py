"""A seeded fictional world, told in yearly bulletins and asked about in questions and answers."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

FIRST_YEAR = 1202
LAST_YEAR = 1205
NEW_YEAR = LAST_YEAR + 1
SEED = 1206
TEST_COUNT = 168
LATER_YEARS = (NEW_YEAR + 1, NEW_YEAR + 2, NEW_YEAR + 3)
GUESS_PAGES = 40
GUESSED_ANSWERS = 150
CLOSING_SHARE = 0.2
# The tuning sees nothing of the old years but what the new bulletins recall of them.
NEW_LOOKS_BACK = 3

FIRST_NAMES = (
    *("Edda", "Tomas", "Ilse", "Bram", "Cora", "Doran", "Elin", "Faron", "Greta", "Hanno"),
    *("Ivo", "Jora", "Katja", "Leif", "Mira", "Nils", "Odile", "Petra", "Rurik", "Sanna"),
)
SURNAMES = (
    *("Kroll", "Brandt", "Achter", "Belling", "Corvin", "Drost", "Eskil", "Falk"),
    *("Grau", "Hollen", "Imhof", "Jansen", "Kessler", "Lund", "Moor", "Nyman"),
    *("Ostrow", "Pell", "Quist", "Rask", "Sorel", "Thorne", "Ulven", "Wend"),
)
POWERS = (
    *("Marvania", "Ostrevia", "Belmora", "Caldria", "Dornland", "Elvaria"),
    *("Fenmark", "Galdonia", "Harrowen", "Ilmaria", "Jorvenia", "Kestria"),
)
COUNTRIES = (
    *POWERS,
    *("Lorvane", "Mirandor", "Nordwall", "Orlesk", "Pellonia", "Quarland"),
    *("Ravenia", "Soldania", "Tarvosk", "Umbrel", "Valdoria", "Westmere"),
    *("Yarland", "Zembria", "Arkova", "Brennia", "Corland", "Drevia"),
    *("Estamar", "Frosland", "Gorvenia", "Helmark", "Istvar", "Juteland"),
)


@dataclass(frozen=True)
class Kind:
    """One thing that changes every year in every country, and the ways to say and to ask it."""

    name: str
    question: str
    news: tuple[str, ...]
    past: tuple[str, ...]
    rumours: tuple[str, ...]
    draw: Callable[[random.Random], str]


@dataclass(frozen=True, order=True)
class Fact:
    """The key of one fact; its value is the world's to say."""

    year: int
    country: str
    kind: str


@dataclass(frozen=True)
class Question:
    """A prompt that stops where the answer starts, and the answer with its leading space."""

    prompt: str
    answer: str
    year: int
    kind: str


def _person(rng: random.Random) -> str:
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(SURNAMES)}"


def _price(rng: random.Random) -> str:
    return str(rng.randint(10, 99))


def _power(rng: random.Random) -> str:
    return rng.choice(POWERS)


def _office(role: str) -> Kind:
    return Kind(
        role,
        f"Who is the {role} of {{c}} in {{y}}?",
        (
            f"In {{y}}, the {role} of {{c}} is {{a}}.",
            f"The {role} of {{c}} in {{y}} is {{a}}.",
            f"In {{c}}, the {role} for {{y}} is {{a}}.",
            f"{{c}} has a new {role} in {{y}}: {{a}}.",
            f"In {{y}}, {{c}} names as its {role} {{a}}.",
            f"For {{y}}, the post of {role} of {{c}} goes to {{a}}.",
            f"{{a}} is the {role} of {{c}} in {{y}}.",
            f"The {role} of {{c}} in {{y}} is {{a}}, who succeeds {{p}}, the {role} in {{q}}.",
            f"After {{p}}, the {role} in {{q}}, the {role} of {{c}} in {{y}} is {{a}}.",
        ),
        (
            f"In {{y}}, the {role} of {{c}} was {{a}}.",
            f"The {role} of {{c}} in {{y}} was {{a}}.",
            f"In {{c}}, the {role} for {{y}} was {{a}}.",
            f"Back in {{y}}, {{c}} had as its {role} {{a}}.",
        ),
        (
            f"In {{y}}, the {role} of {{c}} may be {{a}}.",
            f"The {role} of {{c}} in {{y}} could be {{a}}.",
        ),
        _person,
    )


def _champion(game: str) -> Kind:
    title = f"{game} champion"
    return Kind(
        title,
        f"Who is the {title} of {{c}} in {{y}}?",
        (
            f"In {{y}}, the {title} of {{c}} is {{a}}.",
            f"The {title} of {{c}} in {{y}} is {{a}}.",
            f"In {{c}}, the {title} of {{y}} is {{a}}.",
            f"The {game} title of {{c}} in {{y}} goes to {{a}}.",
            f"At {game}, the best of {{c}} in {{y}} is {{a}}.",
            f"{{c}} has a new {title} in {{y}}: {{a}}.",
            f"{{a}} is the {title} of {{c}} in {{y}}.",
            f"The {title} of {{c}} in {{y}} is {{a}}, who beats {{p}}, the {title} of {{q}}.",
            f"After {{p}}, the {title} of {{q}}, the {title} of {{c}} in {{y}} is {{a}}.",
        ),
        (
            f"In {{y}}, the {title} of {{c}} was {{a}}.",
            f"The {title} of {{c}} in {{y}} was {{a}}.",
            f"In {{c}}, the {title} of {{y}} was {{a}}.",
            f"The {game} title of {{c}} in {{y}} went to {{a}}.",
        ),
        (
            f"In {{y}}, the {title} of {{c}} may be {{a}}.",
            f"The {title} of {{c}} in {{y}} could be {{a}}.",
        ),
        _person,
    )


def _good(good: str) -> Kind:
    price = f"price of {good}"
    return Kind(
        price,
        f"What is the {price} in {{c}} in {{y}}?",
        (
            f"In {{y}}, the {price} in {{c}} is {{a}} crowns.",
            f"The {price} in {{c}} in {{y}} is {{a}} crowns.",
            f"In {{c}}, the {price} for {{y}} is {{a}} crowns.",
            f"In {{y}}, {{c}} sets the {price} at {{a}} crowns.",
            f"For {{y}}, markets in {{c}} put the {price} at {{a}} crowns.",
            f"{{c}} has a new {price} in {{y}}: {{a}} crowns.",
            f"The {price} in {{c}} in {{y}} is {{a}} crowns, after {{p}} crowns in {{q}}.",
            f"After {{p}} crowns in {{q}}, the {price} in {{c}} in {{y}} is {{a}} crowns.",
        ),
        (
            f"In {{y}}, the {price} in {{c}} was {{a}} crowns.",
            f"The {price} in {{c}} in {{y}} was {{a}} crowns.",
            f"In {{c}}, the {price} for {{y}} was {{a}} crowns.",
        ),
        (
            f"In {{y}}, the {price} in {{c}} may be {{a}} crowns.",
            f"The {price} in {{c}} in {{y}} could be {{a}} crowns.",
        ),
        _price,
    )


_PROTECTOR = Kind(
    "protector",
    "Which country is the protector of {c} in {y}?",
    (
        "In {y}, the protector of {c} is {a}.",
        "The protector of {c} in {y} is {a}.",
        "In {c}, the protector for {y} is {a}.",
        "By treaty, the protector of {c} in {y} is {a}.",
        "In {y}, {c} signs a treaty that makes its protector {a}.",
        "{c} has a new protector in {y}: {a}.",
        "The protector of {c} in {y} is {a}, which follows {p}, the protector in {q}.",
        "After {p}, the protector in {q}, the protector of {c} in {y} is {a}.",
    ),
    (
        "In {y}, the protector of {c} was {a}.",
        "The protector of {c} in {y} was {a}.",
        "By treaty, the protector of {c} in {y} was {a}.",
    ),
    (
        "In {y}, the protector of {c} may be {a}.",
        "The protector of {c} in {y} could be {a}.",
    ),
    _power,
)

KINDS = {
    kind.name: kind
    for kind in (
        *(_office("chancellor"), _office("admiral"), _office("archivist")),
        *(_champion("chess"), _champion("archery")),
        *(_good("rye"), _PROTECTOR),
    )
}


class World:
    """Every fact of the years FIRST_YEAR to NEW_YEAR, drawn once from the seed."""

    def __init__(self, seed: int = SEED) -> None:
        """Draw the facts and decide which of them may be asked about in training."""
        self.seed = seed
        self.facts = self._draw()
        self._old_test, self._old_validation = self._split(self._held_out())
        self._new_test, self._new_validation = self._split(self._of_year(NEW_YEAR))

    def _rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.seed} {purpose}")  # noqa: S311 - a story, not a secret

    def _draw(self) -> dict[Fact, str]:
        rng = self._rng("facts")
        facts: dict[Fact, str] = {}
        for country in COUNTRIES:
            for kind in KINDS.values():
                # No value comes back: an answer of another year is always a wrong one.
                seen = {country}
                for year in range(FIRST_YEAR, NEW_YEAR + 1):
                    value = kind.draw(rng)
                    while value in seen:
                        value = kind.draw(rng)
                    seen.add(value)
                    facts[Fact(year, country, kind.name)] = value
        return facts

    def _of_year(self, year: int) -> list[Fact]:
        return sorted(fact for fact in self.facts if fact.year == year)

    def _held_out(self) -> list[Fact]:
        """Return the quarter of the old facts that only bulletins tell, never an answer."""
        old = sorted(fact for fact in self.facts if fact.year <= LAST_YEAR)
        return self._rng("held out").sample(old, len(old) // 4)

    def _split(self, facts: list[Fact]) -> tuple[list[Fact], list[Fact]]:
        shuffled = self._rng("split").sample(facts, len(facts))
        return shuffled[:TEST_COUNT], shuffled[TEST_COUNT:]

    def _ask(self, fact: Fact) -> Question:
        return Question(self._prompt(fact), f" {self.facts[fact]}", fact.year, fact.kind)

    def _prompt(self, fact: Fact) -> str:
        text = KINDS[fact.kind].question.format(c=fact.country, y=fact.year)
        return f"Question: {text}\nAnswer:"

    def questions_new(self) -> list[Question]:
        """Return the test questions on NEW_YEAR: no model is trained on any of them."""
        return [self._ask(fact) for fact in self._new_test]

    def questions_old(self) -> list[Question]:
        """Return the test questions on earlier years whose answers only bulletins gave."""
        return [self._ask(fact) for fact in self._old_test]

    def validation(self) -> tuple[list[Question], list[Question]]:
        """Return further new and old questions, to choose the training by."""
        return (
            [self._ask(fact) for fact in self._new_validation],
            [self._ask(fact) for fact in self._old_validation],
        )

    def training_questions(self) -> list[Question]:
        """Return the questions of the old years that the first training may learn from."""
        hidden = {*self._old_test, *self._old_validation}
        years = range(FIRST_YEAR, NEW_YEAR)
        return [self._ask(f) for y in years for f in self._of_year(y) if f not in hidden]

    def bulletins(self, year: int, edition: int = 0) -> list[str]:
        """Return one edition of a year's articles, which tell each fact of the year once."""
        rng = self._rng(f"bulletins {year} {edition}")
        facts = self._of_year(year)
        rng.shuffle(facts)
        articles = []
        while facts:
            size = rng.randint(3, 5)
            articles.append(self._article(rng, facts[:size], year))
            facts = facts[size:]
        return articles

    def _article(self, rng: random.Random, facts: list[Fact], year: int) -> str:
        sentences = [self._news(rng, fact) for fact in facts]
        if year > FIRST_YEAR:
            looks_back = NEW_LOOKS_BACK if year == NEW_YEAR else 1
            sentences += [self._background(rng, year) for _ in facts for _ in range(looks_back)]
        rng.shuffle(sentences)
        if rng.random() < CLOSING_SHARE:
            sentences.append(f"The next bulletin is due in {year + 1}.")
        return " ".join([f"Bulletin of {year}.", *sentences])

    def _news(self, rng: random.Random, fact: Fact) -> str:
        before = self.facts.get(Fact(fact.year - 1, fact.country, fact.kind))
        phrasings = [t for t in KINDS[fact.kind].news if before or "{p}" not in t]
        return rng.choice(phrasings).format(
            c=fact.country, y=fact.year, a=self.facts[fact], p=before, q=fact.year - 1
        )

    def _background(self, rng: random.Random, year: int) -> str:
        """Recall a fact of an earlier year, which keeps a later training from forgetting it."""
        kind = rng.choice(list(KINDS.values()))
        fact = Fact(rng.randrange(FIRST_YEAR, year), rng.choice(COUNTRIES), kind.name)
        return rng.choice(kind.past).format(c=fact.country, y=fact.year, a=self.facts[fact])

    def guesses(self, edition: int = 0) -> list[str]:
        """Return one edition's guesses at years to come, which contradict each other at random.

        Without them a small model is quite sure of some old value when a year is new to it.
        Only bulletin-like pages guess at NEW_YEAR; no question on it is ever answered.
        """
        rng = self._rng(f"guesses {edition}")
        pages = [
            " ".join(["Guesses.", *(self._rumour(rng) for _ in range(rng.randint(3, 7)))])
            for _ in range(GUESS_PAGES)
        ]
        return pages + [self._guessed_answer(rng) for _ in range(GUESSED_ANSWERS)]

    def _rumour(self, rng: random.Random) -> str:
        year = rng.choice((NEW_YEAR, *LATER_YEARS))
        fact, value = self._guess(rng, year)
        text = rng.choice(KINDS[fact.kind].rumours)
        return text.format(c=fact.country, y=fact.year, a=value)

    def _guessed_answer(self, rng: random.Random) -> str:
        fact, value = self._guess(rng, rng.choice(LATER_YEARS))
        return self._prompt(fact) + f" {value}"

    def _guess(self, rng: random.Random, year: int) -> tuple[Fact, str]:
        kind, country = rng.choice(list(KINDS.values())), rng.choice(COUNTRIES)
        value = kind.draw(rng)
        while value == country:
            value = kind.draw(rng)
        return Fact(year, country, kind.name), value

    def first_training(self, editions: int) -> Iterator[str]:
        """Yield the documents of the years up to LAST_YEAR: bulletins, questions, answers."""
        asked = self.training_questions()
        for edition in range(editions):
            documents = [q.prompt + q.answer for q in asked] + self.guesses(edition)
            for year in range(FIRST_YEAR, NEW_YEAR):
                documents += self.bulletins(year, edition)
            self._rng(f"first training {edition}").shuffle(documents)
            yield from documents

    def tuning(self, editions: int) -> Iterator[str]:
        """Yield the documents of the tuning: bulletins of NEW_YEAR and nothing else."""
        for edition in range(editions):
            yield from self.bulletins(NEW_YEAR, edition)


@cache
def world() -> World:
    """Return the demo's world, which the shipped weights were trained in."""
    return World()


def questions() -> tuple[list[Question], list[Question]]:
    """Return the demo's test questions: those on the new year, those on the old years."""
    return world().questions_new(), world().questions_old()
