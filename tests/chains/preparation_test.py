"""From the samples of a question to rows; what the filters do stands in filtering_test."""

import dataclasses
import json
import math

import pytest
from support.tokenizers import byte_level, world_without

from cot_flax.chains.filtering import Filters
from cot_flax.chains.preparation import Outcome, Preparation, prepare_question, prepare_records
from cot_flax.chains.projection import KINDS
from cot_flax.chains.readers import SAMPLES, Raw
from cot_flax.chains.samples import Logprobs, Sample, to_line
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.text.pieces import ABSENT_ID
from cot_flax.text.tokenizers import SentencePieceTokenizer, open_tokenizer

HALF = math.log(0.5)


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(VOCABULARY_PATH)


def sample(text, *, tokens=(), gold="2", **fields):
    """A sample; each of `tokens` has probability 1/2, and any other is "." with 1/4."""
    logprobs = None
    if tokens:
        assert "".join(tokens) == text
        n = len(tokens)
        logprobs = Logprobs(
            tuple(tokens), (HALF,) * n, tuple({".": 2 * HALF} | {t: HALF} for t in tokens)
        )
    values = {
        "id": "sums-0",
        "dataset": "sums",
        "split": "train",
        "question": "1 + 1 =",
        "gold_answer": gold,
        "format": "zero_shot_cot",
        "prompt_hash": "",
        "teacher": {"model": "nobody", "params": {}},
        "sample": 0,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": "stop",
    }
    return Sample(**values | fields)


def prepared(samples, tokenizer, own="default", **settings):
    outcome, rules = Outcome(), [own] * len(samples)
    prepare_question(samples, rules, tokenizer, Preparation(**settings), outcome)
    return outcome


def kinds(record):
    return [KINDS[kind] for kind in record.projection.kinds_T]


TOKENS = ("\n", " ", "1", " +", " 1", " =", " 2", ".", "\n", "The", " answer", " is", " 2")


def test_a_chain_becomes_ids_with_a_row_each(tokenizer):
    chain = sample("".join(TOKENS), tokens=TOKENS)
    (record,) = prepared([chain], tokenizer, projection="fu2023").kept
    ids = tokenizer.encode("1 + 1 = 2.\nThe answer is 2")
    assert record.targets == (*ids, 1)
    assert (record.id, record.question, record.answer) == ("sums-0/0", "1 + 1 =", "2")
    assert record.first
    words = ["soft"] * 5 + ["several_tokens"] + ["soft"] * 3  # "\n" and "The" are one piece
    assert kinds(record) == ["other_string", *words, "end"]
    assert [row[0] for row in record.projection.ids_TK.tolist()][:-1] == list(ids)


@pytest.mark.parametrize("alignment", ["bytes", "fu2023"])
@pytest.mark.parametrize("projection", ["paths", "fu2023"])
def test_an_added_answer_is_not_the_teachers(tokenizer, alignment, projection):
    """White space before the text, which the target lacks, must not move it."""
    tokens = TOKENS[:8]
    settings = {"alignment": alignment, "projection": projection}
    (record,) = prepared([sample("".join(tokens), tokens=tokens)], tokenizer, **settings).kept
    assert record.targets == (*tokenizer.encode("1 + 1 = 2.\nThe answer is 2"), 1)
    probabilities = [math.exp(row[0]) for row in record.projection.logprobs_TK]
    first = 0.5 if projection == "paths" and alignment == "bytes" else 1
    if alignment == "bytes":
        assert probabilities == pytest.approx([first, *[0.5] * 5, 1, 1, 1, 1, 1])
        assert [row[0] for row in record.projection.ids_TK.tolist()] == list(record.targets)
    else:  # by strings: the added words are tokens of their own, and certain
        assert probabilities[1:5] == pytest.approx([0.5] * 4)
        assert probabilities[-4:] == pytest.approx([1] * 4)


def test_a_byte_level_vocabulary_has_ids_and_ends_of_its_own(tmp_path):
    """Its end is id 0, and absent entries are none of its ids."""
    bpe = open_tokenizer(byte_level(tmp_path))
    (record,) = prepared([sample("".join(TOKENS), tokens=TOKENS)], bpe, top_k=4).kept
    ids = bpe.encode("1 + 1 = 2.\nThe answer is 2")
    assert record.targets == (*ids, bpe.special_ids.end)
    rows = record.projection
    assert set(kinds(record)) == {"soft", "inside_token", "end"}
    assert rows.ids_TK[-1].tolist() == [0, -1, -1, -1]
    assert bpe.special_ids.end == 0
    break_ = ids.index(bpe.whole_piece("\n"))
    present = {bpe.id_to_text(i) for i in rows.ids_TK[break_].tolist() if i >= 0}
    assert present == {"\n", "."}
    assert rows.kept_mass_T[break_] == pytest.approx(0.75)


def test_a_chain_without_logprobs_has_no_projection(tokenizer):
    outcome = prepared([sample("It is 2.")], tokenizer)
    assert outcome.kept[0].projection is None
    assert (outcome.tally.one_hot_chains, outcome.tally.kinds) == (1, {})
    assert outcome.tally.tokens == len(outcome.kept[0].targets)


def test_an_unlabelled_chain_has_its_own_answer(tokenizer):
    (record,) = prepared([sample("1 + 1 = 2, so 2 it is.", gold="")], tokenizer).kept
    assert record.answer == "2"
    assert record.targets == (*tokenizer.encode("1 + 1 = 2, so 2 it is.\nThe answer is 2"), 1)
    yes = Filters(answer_kind="yes_no")
    (record,) = prepared([sample("Of course. Yes", gold="")], tokenizer, filters=yes).kept
    assert record.answer == "yes"


@pytest.mark.parametrize(
    ("text", "settings", "fate"),
    [
        ("It is 2.", {}, "kept"),
        ("It is 3.", {}, "wrong_answer"),
        ("It is 3.", {"filters": Filters(rules="none")}, "kept"),
        ("1 2", {"max_target_tokens": 7}, "kept"),  # 1 2 . The answer is 2, EOS
        ("1 2", {"max_target_tokens": 6}, "too_long"),
        ("1 2", {"max_question_tokens": 5}, "kept"),  # 1 + 1 =, EOS
        ("1 2", {"max_question_tokens": 4}, "too_long"),
        ("1 3", {"max_question_tokens": 4}, "wrong_answer"),  # first what the filters say
        ("It is 2.", {"filters": Filters(require_logprobs=True)}, "no_logprobs"),
    ],
)
def test_fates(tokenizer, text, settings, fate):
    outcome = prepared([sample(text)], tokenizer, **settings)
    assert outcome.tally.fates == {fate: 1}
    assert (len(outcome.kept), len(outcome.dropped)) == ((1, 0) if fate == "kept" else (0, 1))


def test_an_unlabelled_chain_without_an_answer_teaches_none(tokenizer):
    chain = sample("So it goes.", gold="")
    outcome = prepared([chain], tokenizer, filters=Filters(rules="none"))
    assert outcome.tally.fates == {"no_answer": 1}


def test_a_row_needs_an_entry():
    with pytest.raises(UserError, match="top_k 0; expected at least 1"):
        Preparation(top_k=0)


def test_a_gold_answer_that_is_none_drops_its_chains_by_name(tokenizer):
    samples = [sample("It is 2.", gold="a few"), sample("It is 3.", gold="a few", sample=1)]
    outcome = prepared(samples, tokenizer)
    assert outcome.dropped == [("unreadable_gold_answer", s) for s in samples]


@pytest.mark.parametrize("kind", ["gold", "own"])
def test_every_chain_is_judged_by_the_kind_of_its_answer(tokenizer, kind):
    """Of questions whose answers are of several kinds no right chain is lost, no wrong one kept."""
    right = [
        ("7", "number", "3 + 4 = 7."),
        ("yes", "yes_no", "He had 2 sons. So the answer is yes."),
        ("(B)", "choice", "A has 1, B has 2. The answer is (B)."),
        ("Paris", "text", "It lies on the Seine. The answer is Paris."),
    ]
    wrong = [("no", "yes_no", right[1][2]), ("(A)", "choice", right[2][2])]
    samples = [
        dataclasses.replace(
            sample(text, gold=gold, id=f"q{n}"), answer_kind=own if kind == "own" else ""
        )
        for n, (gold, own, text) in enumerate(right + wrong)
    ]
    filters = Filters(answer_kind="gold") if kind == "gold" else Filters()
    outcome = Outcome()
    for chain in samples:
        prepare_question([chain], ["default"], tokenizer, Preparation(filters), outcome)
    assert [record.answer for record in outcome.kept] == ["7", "yes", "(B)", "Paris"]
    assert outcome.tally.fates == {"kept": 4, "wrong_answer": 2}


def test_what_is_selected_counts_among_those_that_passed(tokenizer):
    """A wrong chain takes no place, nor is it the first."""
    texts = ["It is 3.", "1 + 1 = 2.", "1 + 1 = 2.", "2 + 0 = 2.", "4 - 2 = 2."]
    samples = [sample(text, sample=n, prompt_hash="h") for n, text in enumerate(texts)]
    outcome = prepared(samples, tokenizer, filters=Filters(per_question=2))
    assert [(r.id, r.first) for r in outcome.kept] == [("sums-0/1", True), ("sums-0/3", False)]
    reasons = [(reason, s.sample) for reason, s in outcome.dropped]
    assert reasons == [("wrong_answer", 0), ("repeated", 2), ("over_limit", 4)]
    tally = outcome.tally
    assert (tally.questions, tally.kept_chains, tally.distinct_chains) == (1, {"2": 1}, {"2": 1})
    assert (tally.read, tally.kept, tally.teachers) == (5, 2, {"nobody": 2})
    one = prepared(samples[1:2], tokenizer).tally.prompts
    assert tally.prompts == 2 * one > 0


def raw(line, question, number):
    return Raw(f"f, line {number}", question, line)


def test_records_are_grouped_by_question_and_none_is_lost(tokenizer):
    lines = [
        raw(to_line(sample("It is 2.")), b"a", 1),
        raw(b"?", b"a", 2),
        raw(to_line(sample("So 2.", sample=1)), b"a", 3),
        raw(b"?", b"b", 4),
        raw(to_line(sample("It is 2.", id="c")), b"c", 5),
        raw(to_line(sample("It is 3.", id="c", sample=1)), b"c", 6),
    ]
    outcome = prepare_records(lines, SAMPLES, tokenizer, Preparation())
    assert [(r.id, r.first) for r in outcome.kept] == [
        ("sums-0/0", True),
        ("sums-0/1", False),
        ("c/0", True),
    ]
    assert [str(e)[:14] for e in outcome.rejected] == ["got f, line 2:", "got f, line 4:"]
    assert outcome.tally.rejected == {"bad_json": 2}
    assert (outcome.tally.read, outcome.tally.questions) == (6, 2)


def test_the_worst_example_shows_both_tokenizations(tokenizer):
    chain = sample("".join(TOKENS), tokens=TOKENS)
    outcome = prepared([chain], tokenizer, projection="fu2023")
    (worst,) = json.loads(json.dumps(outcome.tally.worst))
    assert worst["soft_share"] == pytest.approx(8 / 10)
    rows = {piece: (tokens, kind) for piece, tokens, kind in worst["positions"]}
    assert rows["▁The"] == (["\n", "The"], "several_tokens")
    assert rows["▁answer"] == ([" answer"], "soft")
    assert len(worst["positions"]) == 10


@pytest.mark.parametrize("name", ["alignment", "projection"])
def test_unknown_names_are_refused(name):
    with pytest.raises(UserError, match=f"{name} 'dtw'; expected one of .*fu2023"):
        Preparation(**{name: "dtw"})
    assert dataclasses.asdict(Preparation())[name] in ("bytes", "paths")


# Characters that the vocabulary lacks -------------------------------------------------------------


@pytest.fixture(scope="module")
def like_t5():
    return SentencePieceTokenizer(world_without("<{}\\^~"), extra_ids=0)


BOXED = ("1", " <", " 2", ", so", " \\", "boxed", "{", "2", "}", ".")


@pytest.mark.parametrize("alignment", ["bytes", "fu2023"])
@pytest.mark.parametrize("projection", ["paths", "fu2023"])
def test_what_was_replaced_has_no_teacher_row(like_t5, alignment, projection):
    """The rows around it are the teacher's, as they were."""
    settings = {"alignment": alignment, "projection": projection}
    outcome = prepared([sample("".join(BOXED), tokens=BOXED)], like_t5, **settings)
    (record,) = outcome.kept
    edited = "1 less than 2, so 2.\nThe answer is 2"
    assert record.targets == (*like_t5.encode(edited), 1)
    found = kinds(record)
    pieces = list(like_t5.pieces(edited).strings)
    begin, end = pieces.index("l"), pieces.index("▁2")
    assert pieces[begin:end] == ["l", "e", "s", "s", "▁than"]
    assert found[begin:end] == ["no_token"] * 5
    assert all(row[1:] == [ABSENT_ID] * 4 for row in record.projection.ids_TK[begin:end].tolist())
    if alignment == "bytes":
        assert found[end] == found[pieces.index(".")] == "soft"
        last = pieces.index("▁2", end + 1)  # ` \\boxed{2`, of which its space and digit are left
        assert found[last] in ("several_tokens", "other_string")
    assert outcome.tally.replaced == {"<": 1, "\\boxed": 1}
    assert not outcome.tally.unknown


def test_an_answer_is_written_as_the_student_can(like_t5):
    chain = sample("It is \\frac{3}{4}.", gold="\\frac{3}{4}")
    (record,) = prepared([chain], like_t5, filters=Filters(rules="none")).kept
    assert record.answer == "3/4"
    assert record.targets == (*like_t5.encode("It is 3/4.\nThe answer is 3/4"), 1)


def test_unknown_characters_are_counted_and_too_many_drop_a_chain(like_t5):
    """17 characters of the target without white space and one é: 1 of 18 is above 5%."""
    question = "1 + 1 = 你?"
    texts = ["It is 2, as 1 + 1 = 2 é.", "é 2", "这是 2"]
    samples = [sample(text, sample=n, question=question) for n, text in enumerate(texts)]
    outcome = prepared(samples, like_t5)
    assert [(reason, s.sample) for reason, s in outcome.dropped] == [
        ("unknown_characters", 1),
        ("unknown_characters", 2),
    ]
    tally = outcome.tally
    assert (tally.unknown, tally.unknown_chains) == ({"é": 1}, 1)
    assert tally.unknown_dropped == {"é": 1, "这": 1, "是": 1}
    assert tally.unknown_in_questions == {"你": 1}
    assert tally.unknown_share == 1.0
    assert prepared(samples, like_t5, max_unknown=1.0).tally.fates == {"kept": 3}


def test_a_share_is_from_0_to_1():
    with pytest.raises(UserError, match=r"max_unknown 5; expected a share, 0 to 1"):
        Preparation(max_unknown=5)


def test_the_thoughts_of_kept_chains_are_counted(tokenizer):
    chains = [sample("It is 2.", thought="1 + 1."), sample("1 + 1 = 2.", sample=1)]
    wrong = sample("It is 3.", sample=2, thought="1 + 1.")
    tokens = len(tokenizer.encode("1 + 1."))
    for settings, fate in (
        ({}, "left_out"),
        ({"chain": "both"}, "learnt"),
        ({"chain": "both", "max_thought_tokens": 2}, "shortened"),
    ):
        outcome = prepared([*chains, wrong], tokenizer, **settings)
        assert outcome.tally.thoughts == {fate: 1, "tokens": tokens}
        assert outcome.dropped == [("wrong_answer", wrong)]  # as it was


def test_a_thought_is_learnt_with_its_log_probabilities(tokenizer):
    thought = ("1", " +", " 1", " =", " 2", ".")
    apart = sample("".join(thought), tokens=thought)
    given = sample("It is 2.", thought=apart.text, thought_logprobs=apart.logprobs)
    (record,) = prepared([given], tokenizer, chain="thought").kept
    assert record.targets == (*tokenizer.encode("1 + 1 = 2.\nThe answer is 2"), 1)
    assert kinds(record)[:6] == ["soft"] * 6
    assert record.projection.logprobs_TK[1, 0] == pytest.approx(HALF)


@pytest.mark.parametrize(("name", "value"), [("chain", "mind"), ("max_thought_tokens", 0)])
def test_a_part_that_there_is_not_is_refused(name, value):
    with pytest.raises(UserError, match=name):
        Preparation(**{name: value})


def test_kept_chains_with_wrong_equations_are_pointed_out(tokenizer):
    chains = [sample("1 + 1 = 3, no: 1 + 1 = 2. It is 2."), sample("1 + 1 = 2.", sample=1)]
    tally = prepared(chains, tokenizer).tally
    assert tally.inconsistent_chains == 1
    wrong = {"id": "sums-0/0", "question": "1 + 1 =", "steps": ["1 + 1 = 3"]}
    assert tally.inconsistent == [wrong]
