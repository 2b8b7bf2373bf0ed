import collections
import re

import pytest

from cot_flax.lab.world import stories
from cot_flax.lab.world.stories import LARGEST, NAMES, SPLITS, THINGS, Step, apply, make_stories

CALCULATE = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


@pytest.fixture(scope="module", params=SPLITS)
def some(request):
    return make_stories(120, split=request.param, seed=3)


def results(story):
    """The value of every step, from the steps alone."""
    values = []
    for step in story.steps:
        left, right = (x if isinstance(x, int) else values[x[1]] for x in (step.left, step.right))
        values.append(CALCULATE[step.operator](left, right))
    return values


def solve(question):
    """The answer, read from the sentences: every one must have exactly one meaning."""
    *sentences, asked = re.split(r"(?<=[.?]) ", question)
    amounts = {}
    for sentence in sentences:
        said = re.sub(rf"^({'|'.join(stories.ORDINALS)}), ", "", sentence)
        meaning, n, m, k = only_meaning(said)
        if meaning == "start":
            amounts[n] = k
        else:
            table, kind = meaning
            owner = m if table == "compare" else n
            operand = k if kind in ("gain", "lose") else 2
            amounts[owner] = CALCULATE[stories.OPERATORS[kind]](amounts[n], operand)
    kind, n, m, _ = only_meaning(asked)
    if kind == "sum":
        assert n is None or {n, m} == set(amounts)
        return sum(amounts.values())
    return amounts[n] - amounts[m] if kind == "difference" else amounts[n]


def only_meaning(sentence):
    tables = {"start": stories.STARTS} | stories.QUESTIONS
    tables |= {("change", kind): wordings for kind, wordings in stories.CHANGES.items()}
    tables |= {("compare", kind): wordings for kind, wordings in stories.COMPARISONS.items()}
    found = [
        (meaning, match)
        for meaning, wordings in tables.items()
        for wording in wordings
        if (match := re.fullmatch(as_pattern(wording), sentence))
    ]
    ((meaning, match),) = found
    values = match.groupdict()
    return meaning, values.get("n"), values.get("m"), int(values["k"]) if "k" in values else None


def as_pattern(wording):
    blanks = {"n": "|".join(NAMES), "m": "|".join(NAMES), "k": "[0-9]+", "t": "|".join(THINGS)}
    parts = re.split(r"\{(\w)\}", wording)
    seen = set()
    for i in range(1, len(parts), 2):
        name = parts[i]
        parts[i] = f"(?P={name})" if name in seen else f"(?P<{name}>{blanks[name]})"
        seen.add(name)
    return "".join(re.escape(p) if i % 2 == 0 else p for i, p in enumerate(parts))


def test_the_last_step_gives_the_answer(some):
    for story in some:
        assert results(story)[-1] == story.answer


def test_all_amounts_stay_in_the_world(some):
    for story in some:
        assert all(0 < value <= LARGEST and value == int(value) for value in results(story))


def test_the_text_tells_the_steps(some):
    for story in some:
        assert solve(story.question) == story.answer, story.question


def test_steps_use_earlier_steps_only(some):
    for story in some:
        assert all(need < i for i, step in enumerate(story.steps) for need in step.needs())


def test_every_step_is_needed_for_the_answer(some):
    for story in some:
        needed = {len(story.steps) - 1}
        for i in reversed(range(len(story.steps))):
            needed |= set(story.steps[i].needs()) if i in needed else set()
        assert needed == set(range(len(story.steps)))


def test_needs_are_the_references():
    assert Step("First", "Anna", 3, "+", ("step", 0)).needs() == (0,)
    assert Step("", "both", ("step", 1), "-", ("step", 0)).needs() == (1, 0)
    assert Step("First", "Anna", 3, "+", 2).needs() == ()


@pytest.mark.parametrize("steps", [(1, 2, 3, 4), (2, 4), (3,)])
def test_steps_come_in_equal_shares(steps):
    counts = collections.Counter(
        len(story.steps) for story in make_stories(24, split="train", steps=steps)
    )
    assert counts == dict.fromkeys(steps, 24 // len(steps))


def test_questions_are_distinct_even_in_a_small_world(monkeypatch):
    monkeypatch.setattr(stories, "NAMES", NAMES[:2])
    monkeypatch.setattr(stories, "THINGS", THINGS[:1])
    found = make_stories(400, split="train", steps=(1,))
    assert len({story.question for story in found}) == 400


def test_seeds_make_different_stories():
    first, second, again = (make_stories(40, split="train", seed=s) for s in (0, 1, 0))
    assert first == again
    assert len({s.question for s in first} & {s.question for s in second}) < 20


def test_all_kinds_of_questions_are_asked(some):
    asked = {re.split(r"(?<=[.?]) ", story.question)[-1] for story in some}
    assert {only_meaning(question)[0] for question in asked} == set(stories.QUESTIONS)


def test_no_template_is_in_two_splits():
    parts = [make_stories(300, split=split, seed=5) for split in SPLITS]
    templates = [{story.template for story in part} for part in parts]
    # What is left of a question without its names, things and numbers.
    texts = [{masked(story.question) for story in part} for part in parts]
    for sets in (templates, texts):
        assert not sets[0] & sets[1]
        assert not sets[0] & sets[2]
        assert not sets[1] & sets[2]


def masked(question):
    order = list(dict.fromkeys(re.findall("|".join(NAMES), question)))
    question = re.sub("|".join(NAMES), lambda m: f"name{order.index(m[0])}", question)
    return re.sub(r"\b[0-9]+\b", "#", re.sub("|".join(THINGS), "things", question))


@pytest.mark.parametrize(
    ("operator", "left", "right", "expected"),
    [
        ("+", 2, 3, 5),
        ("+", LARGEST, 1, None),
        ("+", LARGEST - 1, 1, LARGEST),
        ("-", 5, 3, 2),
        ("-", 3, 3, None),
        ("-", 3, 5, None),
        ("*", 3, 2, 6),
        ("/", 6, 2, 3),
        ("/", 5, 2, None),
    ],
)
def test_apply(operator, left, right, expected):
    assert apply(operator, left, right) == expected
