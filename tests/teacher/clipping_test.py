import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cot_flax.chains.samples import Logprobs
from cot_flax.teacher.clipping import certain, clip, end_at, join, split_thought, trim
from cot_flax.teacher.requests import Completion


def completion(*tokens, finish_reason="stop"):
    """Tokens with log-probabilities -1, -2, ... and one alternative each."""
    values = tuple(-1.0 - i for i in range(len(tokens)))
    tops = tuple({token: value} for token, value in zip(tokens, values, strict=True))
    return Completion("".join(tokens), Logprobs(tokens, values, tops), finish_reason)


def test_clip_between_tokens():
    found = clip(completion("\n", "Two", ".", "\n\n"), 1, 5)
    assert found.text == "Two."
    assert found.logprobs == Logprobs(("Two", "."), (-2.0, -3.0), ({"Two": -2.0}, {".": -3.0}))


def test_clip_inside_tokens_keeps_the_value_and_drops_the_alternatives():
    found = clip(completion(":Two", " is", ".\n"), 1, 8)
    assert found.text == "Two is."
    assert found.logprobs == Logprobs(
        ("Two", " is", "."), (-1.0, -2.0, -3.0), ({}, {" is": -2.0}, {})
    )


def test_clip_behind_white_space_keeps_the_alternatives_without_it():
    found = clip(completion("\nTwo", " is"), 1, 7)
    assert found.logprobs == Logprobs(("Two", " is"), (-1.0, -2.0), ({"Two": -1.0}, {" is": -2.0}))
    kept = clip(completion("\n Two"), 1, 5)
    assert kept.logprobs == Logprobs((" Two",), (-1.0,), ({" Two": -1.0},))


def test_trim_keeps_the_space_of_the_first_word():
    assert trim(completion("\n", "\n", " Two", " ")).logprobs.tokens == (" Two",)
    assert trim(completion("\n", " ")) == Completion("", Logprobs((), (), ()), "stop")
    assert trim(Completion("\nTwo\n", None, "length")) == Completion("Two", None, "length")


def test_end_at_the_first_marker():
    text = completion("a", "\n", "#", " b", "\n", "#", finish_reason="length")
    assert end_at(text, re.compile("\n#")) == replace(completion("a"), finish_reason="stop")
    assert end_at(text, re.compile("b(\n)")).text == "a\n# b"
    assert end_at(text, re.compile("c")) == text


@pytest.mark.parametrize(
    ("tokens", "thought", "text"),
    [
        (["<think>", " Maybe 5?", "</think>", "\n", "It is 8."], "Maybe 5?", "\nIt is 8."),
        (["\n<think>", "Maybe 5?\n", "</think>"], "Maybe 5?", ""),
        (["Maybe", " 5?", "</think>It", " is 8."], "Maybe 5?", "It is 8."),  # begun in the prompt
        (["<think>", "Maybe", " 5"], "Maybe 5", ""),  # cut at the token limit
        (["[THINK]", "Maybe", "[/THINK]", "8"], "Maybe", "8"),
        (["It is", " 8."], "", "It is 8."),
        (["I <think> so."], "", "I <think> so."),
    ],
)
def test_a_thought_in_the_text_is_taken_out(tokens, thought, text):
    found = split_thought(completion(*tokens, finish_reason="length"))
    assert (found.thought, found.text, found.finish_reason) == (thought, text, "length")
    pairs = [(found.logprobs, text)]
    if thought:
        pairs.append((found.thought_logprobs, thought))
    for logprobs, whole in pairs:
        assert "".join(logprobs.tokens) == whole
        values = dict(zip(logprobs.tokens, logprobs.token_logprobs, strict=True))
        assert all(value == -1.0 - tokens.index(t) for t, value in values.items() if t in tokens)


def test_what_alone_was_said_is_no_thought():
    """vLLM takes a text without an end of a thought for one: `content` is null."""
    said = completion("1 + 1", " = 2.")
    apart = Completion("", Logprobs((), (), ()), "stop", "", said.text, said.logprobs)
    assert split_thought(apart) == said
    assert split_thought(completion("<think>", "1 + 1", " = 2.")).text == "1 + 1 = 2."
    cut = replace(apart, finish_reason="length")
    assert split_thought(cut) == cut


def test_thoughts_of_both_kinds_and_of_both_steps_are_joined():
    inner = replace(completion("<think>b</think>", "c"), thought="a")
    assert split_thought(inner).thought == "a\nb"
    parts = [
        replace(completion("a"), thought="x"),
        certain("-"),
        replace(certain("c"), thought="y"),
    ]
    assert join(parts, "stop").thought == "x\ny"
    assert join(parts, "stop").thought_logprobs is None
    with_values = [replace(part, thought_logprobs=certain(part.thought).logprobs) for part in parts]
    assert join(with_values, "stop").thought_logprobs.tokens == ("x", "\n", "y")


def test_certain_joins_to_its_text():
    words = certain("\nTherefore, the answer is ")
    assert words.logprobs.tokens == ("\nTherefore", ",", " the", " answer", " is", " ")
    assert words.logprobs.token_logprobs == (0.0,) * 6
    assert words.logprobs.top_logprobs == ({},) * 6


def test_join():
    found = join([completion("a", "b"), certain("-"), completion("c")], "length")
    assert found.text == "ab-c"
    assert found.logprobs.tokens == ("a", "b", "-", "c")
    assert found.logprobs.token_logprobs == (-1.0, -2.0, 0.0, -1.0)
    assert found.logprobs.top_logprobs == ({"a": -1.0}, {"b": -2.0}, {}, {"c": -1.0})
    assert found.finish_reason == "length"
    assert join([completion("a"), Completion("b", None, "stop")], "stop").logprobs is None


@given(st.lists(st.text(max_size=4)), st.integers(0, 20), st.integers(0, 20))
def test_whatever_is_cut_text_and_tokens_stay_together(tokens, start, end):
    whole = completion(*tokens)
    found = clip(whole, start, end)
    assert found.text == whole.text[start:end]
    for cut in (found, trim(whole), end_at(whole, re.compile("[a-m](\n|0)"))):
        assert "".join(cut.logprobs.tokens) == cut.text
        assert len({len(row) for row in vars(cut.logprobs).values()}) == 1
    kept = dict(zip(found.logprobs.token_logprobs, found.logprobs.tokens, strict=True))
    assert all(piece in tokens[int(-1 - value)] for value, piece in kept.items())


@given(st.text())
def test_certain_loses_nothing(text):
    assert "".join(certain(text).logprobs.tokens) == text
