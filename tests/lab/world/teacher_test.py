import collections
import itertools
import json
import math
import os
import random
import subprocess
import sys

import pytest

from cot_flax.chains.samples import read_samples, sample_from_record, write_samples
from cot_flax.lab.world import teacher as teacher_module
from cot_flax.lab.world.stories import LARGEST, Step, Story, make_stories
from cot_flax.lab.world.teacher import StoryTeacher, make_samples, reference_rationale, tokenize
from cot_flax.text.answers import extract_answer
from cot_flax.text.calculator import rewrite
from cot_flax.text.equations import find_equations

TEACHER = StoryTeacher(in_order=0.7, slip=0.1, mistake=0.05)
# Two characters who change once, and what they have together.
TWO = Story(
    question="",
    thing="coins",
    steps=(
        Step("First", "Anna", 4, "+", 2),
        Step("Second", "Ben", 2, "*", 2),
        Step("", "both", ("step", 0), "+", ("step", 1)),
    ),
    answer=10,
    template="",
)
ONE = Story("", "coins", (Step("First", "Anna", 4, "+", 2),), 6, "")


def complete_chains(story):
    """(tokens, probability, answer) of every text that the teacher can write, spelt out anew."""

    def results(operator, left, right):
        value = {"+": left + right, "-": left - right, "*": left * right, "/": left // 2}[operator]
        value = min(max(value, 0), LARGEST)
        near = {d: w for d, w in teacher_module.SLIPS.items() if 0 <= value + d <= LARGEST}
        slips = {value + d: TEACHER.slip * w / sum(near.values()) for d, w in near.items()}
        return {value: 1 - TEACHER.slip} | slips

    def sentences(i, believed):
        step = story.steps[i]
        left, right = (x if isinstance(x, int) else believed[x[1]] for x in (step.left, step.right))
        wordings = teacher_module.WORDINGS[step.operator if step.owner == "both" else "one"]
        weights = teacher_module.WORDING_WEIGHTS[len(wordings)]
        other = teacher_module.MISTAKEN_OPERATION[step.operator]
        for operator, p in ((step.operator, 1 - TEACHER.mistake), (other, TEACHER.mistake)):
            for result, p_result in results(operator, left, right).items():
                for wording, weight in zip(wordings, weights, strict=True):
                    blanks = {"i": step.ordinal, "o": step.owner, "t": story.thing}
                    blanks |= {"a": left, "b": right, "op": operator, "c": result}
                    yield wording.format(**blanks), p * p_result * weight, result

    def go_on(text, p, believed):
        if len(believed) == len(story.steps):
            answer = believed[len(story.steps) - 1]
            yield tuple(tokenize(f"{text}\nThe answer is {answer}")), p, answer
            return
        ready = [
            i
            for i, step in enumerate(story.steps)
            if i not in believed and all(need in believed for need in step.needs())
        ]
        for place, i in enumerate(ready):
            first = TEACHER.in_order if place == 0 else (1 - TEACHER.in_order) / (len(ready) - 1)
            order = 1.0 if len(ready) == 1 else first
            for sentence, q, result in sentences(i, believed):
                joined = f"{text} {sentence}".strip()
                yield from go_on(joined, p * order * q, believed | {i: result})

    return list(go_on("", 1.0, {}))


@pytest.fixture(scope="module")
def chains():
    return complete_chains(TWO)


def distributions(chains, tokens):
    """The distribution of every token of a text, from the complete texts that share its prefix."""
    for i in range(len(tokens) + 1):
        weights = collections.Counter()
        for other, p, _ in chains:
            if len(other) > i:
                weights[other[i]] += p
        total = sum(weights.values())
        yield {token: weight / total for token, weight in weights.items()}
        chains = [chain for chain in chains if chain[0][i : i + 1] == tokens[i : i + 1]]


def test_all_texts_together_have_probability_1(chains):
    assert sum(p for _, p, _ in chains) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_next_token_sums_over_all_texts_with_the_prefix(chains, seed):
    tokens = tuple(TEACHER.write(TWO, random.Random(seed)).tokens)
    for i, expected in enumerate(distributions(chains, tokens)):
        assert TEACHER.next_token(TWO, tokens[:i]) == pytest.approx(expected), tokens[:i]


def test_nothing_follows_a_whole_text(chains):
    assert TEACHER.next_token(TWO, chains[0][0]) == {}


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_logged_is_the_distribution(chains, seed, k):
    written = TEACHER.write(TWO, random.Random(seed), k=k)
    tokens = tuple(written.tokens)
    exact = list(distributions(chains, tokens))[:-1]
    assert len(exact) == len(written.token_logprobs) == len(written.top_logprobs)
    for token, chosen, top, expected in zip(
        tokens, written.token_logprobs, written.top_logprobs, exact, strict=True
    ):
        assert chosen == pytest.approx(math.log(expected[token]))
        assert {t: math.exp(lp) for t, lp in top.items()} == pytest.approx(
            {t: expected[t] for t in top}
        )
        # The k best; of equals any may be among them.
        best = sorted(expected.values(), reverse=True)[:k]
        assert sorted((expected[t] for t in top), reverse=True) == pytest.approx(best)


def test_the_probabilities_of_one_equation():
    teacher = StoryTeacher(in_order=0.7, slip=0.1, mistake=0.05)
    found = {"".join(s.tokens): s.probability for s in teacher.sentences(ONE, (None,))}
    weight = teacher_module.WORDING_WEIGHTS[3][0]
    wording = teacher_module.WORDINGS["one"][0]

    def text(operator, result):
        return wording.format(i="First", o="Anna", a=4, op=operator, b=2, c=result, t="coins")

    assert found[text("+", 6)] == pytest.approx(0.95 * 0.9 * weight)
    assert found[text("-", 2)] == pytest.approx(0.05 * 0.9 * weight)
    slip = teacher_module.SLIPS[1]
    assert found[text("+", 7)] == pytest.approx(0.95 * 0.1 * slip * weight)


def test_sentences_sum_to_1_in_every_state():
    for story in make_stories(20, split="train", seed=2):
        state = (None,) * len(story.steps)
        while state:
            found = TEACHER.sentences(story, state)
            assert sum(s.probability for s in found) == pytest.approx(1)
            state = found[len(found) // 2].state


def test_no_sentence_is_the_beginning_of_another():
    """Or the end of a sentence could not be told from its tokens."""
    for story in make_stories(8, split="train", seed=2):
        texts = sorted(s.tokens for s in TEACHER.sentences(story, (None,) * len(story.steps)))
        assert len(set(texts)) == len(texts)
        assert not any(b[: len(a)] == a for a, b in itertools.pairwise(texts))


def test_the_teacher_goes_on_with_what_it_wrote(chains):
    """A sum of a wrong amount is an equation of that wrong amount."""
    texts = ["".join(tokens) for tokens, _, answer in chains if answer != TWO.answer]
    assert any("4 + 2 = 7" in text and "7 + 4 = 11" in text for text in texts)
    assert not any("4 + 2 = 7" in text and "6 + 4" in text for text in texts)


DRAWS = 1500


@pytest.fixture(scope="module")
def draws():
    rng = random.Random(0)
    return [TEACHER.write(TWO, rng) for _ in range(DRAWS)]


def assert_within_4_sigma(count, p):
    assert abs(count - DRAWS * p) <= 4 * math.sqrt(DRAWS * p * (1 - p)), (count, DRAWS * p)


def test_sampled_first_tokens_have_their_frequencies(draws):
    counts = collections.Counter(draw.tokens[0] for draw in draws)
    exact = TEACHER.next_token(TWO, ())
    assert len(exact) > 1
    assert counts.keys() <= exact.keys()
    for token, p in exact.items():
        assert_within_4_sigma(counts[token], p)


def test_sampled_wrong_answers_have_their_share(chains, draws):
    exact = sum(p for _, p, answer in chains if answer != TWO.answer)
    assert 0.1 < exact < 0.9
    wrong = sum(not "".join(d.tokens).endswith(f"The answer is {TWO.answer}") for d in draws)
    assert_within_4_sigma(wrong, exact)


PERFECT = StoryTeacher(slip=0.0, mistake=0.0)


def test_a_teacher_without_errors_is_always_right():
    for sample in make_samples(make_stories(40, split="train"), samples=2, teacher=PERFECT):
        assert extract_answer(sample.text, kind="number", mode="strict") == sample.gold_answer


def test_some_samples_are_wrong_and_most_are_right():
    samples = list(make_samples(make_stories(300, split="train"), seed=1))
    right = [
        extract_answer(sample.text, kind="number", mode="strict") == sample.gold_answer
        for sample in samples
    ]
    assert 0.5 < sum(right) / len(right) < 1


def equations(text):
    return tuple(text[e.operands[0].start : e.results[0].end] for e in find_equations(text))


def test_some_story_has_several_right_orders():
    stories = make_stories(40, split="train", steps=(3, 4))
    orders = collections.defaultdict(set)
    for sample in make_samples(stories, samples=8, teacher=PERFECT):
        orders[sample.id].add(equations(sample.text))
    several = [found for found in orders.values() if len(found) > 1]
    assert several
    for found in several:  # the same equations, put in another order
        assert len({tuple(sorted(order)) for order in found}) == 1


def test_samples_keep_the_contract_and_come_back_from_a_file(tmp_path):
    stories = make_stories(6, split="train")
    written = list(make_samples(stories, samples=2))
    write_samples(tmp_path / "s.jsonl", written)
    assert list(read_samples(tmp_path / "s.jsonl")) == written
    for sample, story in zip(written[::2], stories, strict=True):
        record = json.loads(json.dumps(vars(sample) | {"logprobs": vars(sample.logprobs)}))
        assert sample_from_record(record, "here") == sample
        assert (sample.question, sample.gold_answer) == (story.question, str(story.answer))
    assert [sample.sample for sample in written] == [0, 1] * 6
    assert len({sample.id for sample in written}) == 6


def test_samples_of_a_seed_are_the_same_in_any_process():
    script = """
import hashlib
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import make_samples
samples = make_samples(make_stories(40, split="test", seed=4), samples=2, seed=5)
print(hashlib.sha256(repr(list(samples)).encode()).hexdigest())
"""
    digests = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_seeds_make_different_samples():
    stories = make_stories(20, split="train")
    texts = [[s.text for s in make_samples(stories, seed=seed)] for seed in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]


def test_reference_rationales_are_right_and_complete():
    for story in make_stories(80, split="test"):
        text = reference_rationale(story)
        assert rewrite(text) == text  # all equations hold
        found = find_equations(text)
        assert len(found) == len(story.steps)
        assert found[-1].results[0].value == story.answer
        assert "answer" not in text


def test_tokens_are_words_with_their_space_and_marks():
    text = "First, Anna has 4 + 2 = 6.\nThe answer is 6"
    assert tokenize(text) == [
        *("First", ",", " Anna", " has", " 4", " +", " 2", " =", " 6", "."),
        *("\n", "The", " answer", " is", " 6"),
    ]
    assert "".join(tokenize(text)) == text
