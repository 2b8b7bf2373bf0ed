"""Which part of a sample the student writes: the text, the thought before it, or both."""

import pytest

from cot_flax.chains.samples import Logprobs, Sample
from cot_flax.chains.thoughts import chain_of
from cot_flax.text.prompts import DEFAULT
from cot_flax.text.tokenizers import ByteTokenizer
from cot_flax.text.wording import LANGUAGES

THOUGHT = ("Two", " and", " two", ".", " 2", " +", " 2", " =", " 4", ".")
TEXT = ("\n", "It", " is", " 4", ".")


def logprobs(tokens, first=-1.0):
    values = tuple(first - i for i in range(len(tokens)))
    return Logprobs(tokens, values, tuple({token: -9.0} for token in tokens))


def sample(**fields):
    values = {
        "id": "sums-0",
        "dataset": "sums",
        "split": "train",
        "question": "2 + 2 =",
        "gold_answer": "5",
        "format": "zero_shot_cot",
        "prompt_hash": "",
        "teacher": {"model": "nobody", "params": {}},
        "sample": 0,
        "text": "".join(TEXT),
        "logprobs": logprobs(TEXT, -20.0),
        "finish_reason": "stop",
        "thought": "".join(THOUGHT),
        "thought_logprobs": logprobs(THOUGHT),
    }
    return Sample(**values | fields)


def chosen(given, part, most=None):
    found = chain_of(given, part, answer_kind="number", most=most, tokenizer=ByteTokenizer())
    if found.logprobs:
        assert "".join(found.logprobs.tokens) == found.text
    return found


def test_the_text_is_the_chain_by_default_and_where_there_is_no_thought():
    assert chosen(sample(), "text") == sample()
    bare = sample(thought="", thought_logprobs=None)
    assert [chosen(bare, part) for part in ("thought", "both")] == [bare, bare]


def test_the_thought_is_closed_with_the_answer_of_the_text_and_not_with_the_right_one():
    found = chosen(sample(), "thought")
    assert found.text == "Two and two. 2 + 2 = 4.\nThe answer is 4"
    assert (found.thought, found.thought_logprobs) == ("", None)
    assert found.logprobs.token_logprobs == (*range(-1, -11, -1), 0.0, 0.0, 0.0, 0.0)
    assert found.logprobs.top_logprobs[9:] == ({".": -9.0}, {}, {}, {}, {})


def test_a_thought_is_closed_in_the_words_of_its_data_set():
    words = {"answer_kind": "number", "most": None, "tokenizer": ByteTokenizer()}
    found = chain_of(sample(), "thought", **words, template=DEFAULT.worded(LANGUAGES["es"].wording))
    assert found.text == "Two and two. 2 + 2 = 4.\nLa respuesta es 4"
    assert "".join(found.logprobs.tokens) == found.text


def test_both_stand_behind_each_other():
    found = chosen(sample(), "both")
    assert found.text == "Two and two. 2 + 2 = 4.\nIt is 4."
    assert found.logprobs.tokens == (*THOUGHT, "\n", *TEXT[1:])
    assert found.logprobs.token_logprobs[9:] == (-10.0, 0.0, -21.0, -22.0, -23.0, -24.0)


@pytest.mark.parametrize("missing", ["logprobs", "thought_logprobs"])
def test_both_have_log_probabilities_where_both_parts_have(missing):
    assert chosen(sample(**{missing: None}), "both").logprobs is None


def test_without_an_answer_the_thought_stands_alone():
    found = chosen(sample(text="I do not know.", logprobs=None), "thought")
    assert found.text == "".join(THOUGHT)
    assert found.logprobs == sample().thought_logprobs


@pytest.mark.parametrize(
    ("most", "kept"),
    [
        (99, "Two and two. 2 + 2 = 4."),
        (23, "Two and two. 2 + 2 = 4."),
        (22, "Two and two."),
        (12, "Two and two."),
        (11, "Two and"),  # no sentence is whole: the words that are
        (3, "Two"),
        (2, "Tw"),
    ],
)
def test_of_a_long_thought_the_first_sentences_stay(most, kept):
    found = chosen(sample(), "thought", most)  # a token is a byte
    assert found.text == f"{kept}\nThe answer is 4"
    assert found.logprobs.token_logprobs[: len(THOUGHT)][0] == -1.0


def test_sentences_of_chinese_and_lines_are_whole_too():
    chinese = sample(
        thought="\u4e8c\u52a0\u4e8c\u3002\u7b49\u4e8e\u56db\u3002", thought_logprobs=None
    )
    assert chosen(chinese, "both", 20).text == "\u4e8c\u52a0\u4e8c\u3002\nIt is 4."
    lines = sample(thought="2 + 2\n= 4", thought_logprobs=None)
    assert chosen(lines, "both", 8).text == "2 + 2\nIt is 4."
    assert chosen(lines, "both", 5).text == "2 + 2\nIt is 4."
