import json
import math
from pathlib import Path

import pytest

from cot_flax.chains.samples import Logprobs
from cot_flax.teacher.recipes import PRESETS
from cot_flax.teacher.requests import Completion
from cot_flax.teacher.tokens import read_echo, read_logprobs, read_prompt_logprobs, read_thought

TWO = {
    "tokens": ["It", " is"],
    "token_logprobs": [-0.5, -0.25],
    "top_logprobs": [{"It": -0.5, "He": -1.5}, {" was": -1.75}],
}


def entry(token, logprob, *top, **more):
    others = [{"token": t, "logprob": v} | rest for t, v, rest in top]
    return {"token": token, "logprob": logprob, "top_logprobs": others} | more


def test_the_completions_shape():
    expected = Logprobs(("It", " is"), (-0.5, -0.25), ({"It": -0.5, "He": -1.5}, {" was": -1.75}))
    assert read_logprobs(TWO, "It is") == (expected, "")


@pytest.mark.parametrize("shape", [{"bytes": None}, {}])
def test_the_chat_shape(shape):
    content = [
        entry("It", -0.5, ("It", -0.5, shape), ("He", -1.5, shape), **shape),
        entry(" is", -0.25, (" was", -1.75, {"bytes": list(b" was")}), bytes=list(b" is")),
    ]
    assert read_logprobs({"content": content, "refusal": None}, "It is") == read_logprobs(
        TWO, "It is"
    )


def test_a_record_without_alternatives():
    record = {"tokens": ["It", " is"], "token_logprobs": [-0.5, -0.25], "top_logprobs": None}
    assert read_logprobs(record, "It is")[0].top_logprobs == ({}, {})


@pytest.mark.parametrize("last", [None, -9999.0])
def test_tokens_after_the_end_of_the_text_are_cut_off(last):
    record = {
        "tokens": ["It", " is", "", "\n\n", "<|endoftext|>"],
        "token_logprobs": [-0.5, -0.25, last, -1.0, last],
        "top_logprobs": [*TWO["top_logprobs"], None, {}, {}],
    }
    assert read_logprobs(record, "It is") == read_logprobs(TWO, "It is")
    assert read_logprobs(record, "") == (Logprobs((), (), ()), "")


PARTS = {
    "completions": {
        "tokens": ["1", "bytes: \\xe2\\x80", "bytes:\\x93", "3"],
        "token_logprobs": [-1.0, -0.5, -0.25, 0.0],
        "top_logprobs": [
            {"1": -1.0},
            {"bytes: \\xe2\\x80": -0.5, " to": -2.0},
            {"bytes:\\x93": -0.25, "bytes:\\x94": -3.0},
            {"3": 0.0},
        ],
    },
    "chat": {
        "content": [
            entry("1", -1.0, ("1", -1.0, {})),
            entry(
                " \\xe2\\x80",
                -0.5,
                (" \\xe2\\x80", -0.5, {"bytes": [0x20, 0xE2, 0x80]}),
                (" to", -2.0, {"bytes": list(b" to")}),
                bytes=[0x20, 0xE2, 0x80],
            ),
            entry("\\x93", -0.25, ("\\x94", -3.0, {"bytes": [0x94]}), bytes=[0x93]),
            entry("3", 0.0, ("3", 0.0, {"bytes": [0x33]}), bytes=[0x33]),
        ]
    },
}


@pytest.mark.parametrize("shape", PARTS)
def test_the_parts_of_a_character_become_one_token(shape):
    assert read_logprobs(PARTS[shape], "1 –3") == (
        Logprobs(
            ("1", " –", "3"),
            (-1.0, -0.75, 0.0),
            ({"1": -1.0}, {" to": -2.0, " –": -0.75}, {"3": 0.0}),
        ),
        "",
    )


def test_an_empty_token_joins_the_next_one():
    """vLLM: the first tokens of a character are empty, its last one has it whole."""
    record = {
        "tokens": ["", "–", "."],
        "token_logprobs": [-0.5, -0.25, -1.0],
        "top_logprobs": [{"": -0.5, "to": -2.0}, {"–": -0.25}, {".": -1.0}],
    }
    expected = Logprobs(("–", "."), (-0.75, -1.0), ({"to": -2.0, "–": -0.75}, {".": -1.0}))
    assert read_logprobs(record, "–.") == (expected, "")


def test_alternatives_without_a_value_or_a_text_are_left_out():
    top = {"a": None, "b": -9999.0, "c": -math.inf, "": -1.0, "bytes:\\xe2": -1.0, "\ufffd": -1.0}
    kept = {"It": -0.5, "d": -100.0}
    record = {"tokens": ["It"], "token_logprobs": [-0.5], "top_logprobs": [top | kept]}
    assert read_logprobs(record, "It")[0].top_logprobs == (kept,)


def test_of_two_alternatives_with_one_text_the_likelier_stays():
    content = [entry("It", -0.5, ("It", -0.5, {}), ("It", -3.0, {}))]
    assert read_logprobs({"content": content}, "It")[0].top_logprobs == ({"It": -0.5},)


def test_float_noise_above_0_is_0():
    record = {"tokens": ["It"], "token_logprobs": [1e-4], "top_logprobs": [{"It": 3e-7}]}
    expected = Logprobs(("It",), (0.0,), ({"It": 0.0},))
    assert read_logprobs(record, "It") == (expected, "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tokens": ["It", " was"]}, "tokens_do_not_join"),
        ({"tokens": ["It", " i"]}, "tokens_do_not_join"),
        ({"tokens": ["It", "bytes:\\xe2\\x80"]}, "tokens_do_not_join"),
        ({"tokens": ["token_id:12", "token_id:7"]}, "token_ids"),
        ({"tokens": [1, 2]}, "unknown_shape"),
        ({"tokens": ["It"]}, "unknown_shape"),
        ({"tokens": []}, "not_given"),
        ({"top_logprobs": [["It", -1], []]}, "unknown_shape"),
        ({"token_logprobs": ["-0.5", "-0.5"]}, "unknown_shape"),
        ({"token_logprobs": [-0.5, None]}, "no_probability"),
        ({"token_logprobs": [-0.5, -math.inf]}, "no_probability"),
        ({"token_logprobs": [-0.5, -9999.0]}, "no_probability"),
        ({"token_logprobs": [-0.5, math.nan]}, "nan"),
        ({"token_logprobs": [-0.5, 1.1e-4]}, "probability_above_1"),
        ({"top_logprobs": [{"It": math.nan}, {}]}, "nan"),
        ({"top_logprobs": [{"It": 0.5}, {}]}, "probability_above_1"),
        ({"top_logprobs": [{"It": -0.5, "He": -0.5}, {}]}, "mass_above_1"),  # 2 e^-0.5 = 1.21
        ({"top_logprobs": [{"He": -0.5}, {}]}, "mass_above_1"),  # and "It": -0.5
    ],
)
def test_what_cannot_be_used_has_a_reason(change, reason):
    assert read_logprobs(TWO | change, "It is") == (None, reason)


@pytest.mark.parametrize("record", [None, {}, {"content": None}, {"content": []}])
def test_nothing_given(record):
    assert read_logprobs(record, "It is") == (None, "not_given")


def echo(tokens):
    logprobs = [None, *(-float(i) for i in range(1, len(tokens)))]
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": [None] * len(tokens)}


@pytest.mark.parametrize("begin", [[], ["<s>"]])
def test_the_text_is_cut_out_of_the_echo(begin):
    """With `max_tokens=1` there is a token after the text."""
    record = echo([*begin, "Q", ":", " It", " is", " so"])
    shift = len(begin)
    expected = Logprobs((" It", " is"), (-2.0 - shift, -3.0 - shift), ({}, {}))
    assert read_echo(record, "Q:", " It is") == (expected, "")


def test_white_space_at_the_end_of_an_echo_needs_no_token():
    read, reason = read_echo(echo(["Q:", " It", " is"]), "Q:", " It is \n")
    assert (read.tokens, reason) == ((" It", " is", " \n"), "")
    assert read.token_logprobs == (-1.0, -2.0, 0.0)
    assert read_echo(echo(["Q:", "It", " is"]), "Q:", " It is") == (None, "tokens_do_not_join")


def test_a_boundary_inside_a_token_is_named():
    assert read_echo(echo(["Q", ": It", " is"]), "Q:", " It is") == (None, "boundary_inside_token")


def plain(*tokens):
    """Tokens with log-probabilities -1, -2, ..., each its own alternative beside " x"."""
    values = [-1.0 - i for i in range(len(tokens))]
    tops = [{token: value, " x": -9.0} for token, value in zip(tokens, values, strict=True)]
    return {"tokens": list(tokens), "token_logprobs": values, "top_logprobs": tops}


def kept(*pairs):
    """(token, log-probability) pairs as the two rows that are read."""
    tokens, values = zip(*pairs, strict=True)
    return tokens, values


@pytest.mark.parametrize(
    ("tokens", "text", "pairs", "cut"),
    [
        # A stop string "\nQ:" that begins inside "\n\n" or ".\n\n" (vLLM).
        (["It", " is", "\n\n", "Q", ":"], "It is\n", [("It", -1), (" is", -2), ("\n", -3)], {2}),
        (["It", " is", ".\n\n", "Q"], "It is.", [("It", -1), (" is", -2), (".", -3)], {2}),
        # A server that strips the text.
        ([" It", " is"], "It is", [("It", -1), (" is", -2)], set()),
        (["\n", "\n", "It", " is", " "], "It is", [("It", -3), (" is", -4)], set()),
        # Reasoning before it, which may hold the same words (SGLang).
        (
            ["<think>", "It is", "</think>", "\n", "It", " is", "<|im_end|>"],
            "It is",
            [("It", -5), (" is", -6)],
            set(),
        ),
        # A begin-of-text token, and special tokens that the text leaves out.
        (["<s>", "It", " is", "</s>"], "It is", [("It", -2), (" is", -3)], set()),
        (["<s>", "It", "<|x|>", " is"], "It is", [("It", -2), (" is", -3 - 4)], set()),
    ],
)
def test_the_text_is_found_in_the_joined_tokens(tokens, text, pairs, cut):
    read, reason = read_logprobs(plain(*tokens), text)
    assert reason == ""
    assert (read.tokens, read.token_logprobs) == kept(*pairs)
    assert {i for i, top in enumerate(read.top_logprobs) if not top} == cut


@pytest.mark.parametrize(
    ("tokens", "text", "pairs"),
    [
        # llama.cpp withholds white space that may begin a stop string, from the tokens alone.
        (["It", " is"], "It is\n", [("It", -1), (" is", -2), ("\n", 0)]),
        (["It", " is"], "\n It is \n", [("\n ", 0), ("It", -1), (" is", -2), (" \n", 0)]),
        (["\n", "It", " is"], "\n\nIt is\n", [("\n\n", 0), ("It", -2), (" is", -3), ("\n", 0)]),
        # The token limit came inside a character.
        (["It", "bytes:\\xe2\\x80"], "It\ufffd", [("It", -1), ("\ufffd", 0)]),
        (["\u94c5", ""], "\u94c5\ufffd", [("\u94c5", -1), ("\ufffd", 0)]),
    ],
)
def test_white_space_at_the_ends_needs_no_token(tokens, text, pairs):
    read, reason = read_logprobs(plain(*tokens), text)
    assert reason == ""
    assert (read.tokens, read.token_logprobs) == kept(*pairs)
    assert [bool(top) for top in read.top_logprobs] == [value < 0 for _, value in pairs]


def test_white_space_inside_the_text_needs_its_token():
    assert read_logprobs(plain("It", "is"), "It is") == (None, "tokens_do_not_join")
    assert read_logprobs(plain("It"), " \n") == (None, "tokens_do_not_join")


def test_behind_white_space_the_first_token_keeps_its_alternatives():
    """A server that strips the text: e^-0.5 + e^-2 for what begins with It, with a space or not."""
    record = {
        "tokens": [" It", " is"],
        "token_logprobs": [-0.5, -0.25],
        "top_logprobs": [{" It": -0.5, "It": -2.0, " He": -2.5, "\n": -3.0}, {" is": -0.25}],
    }
    read, _ = read_logprobs(record, "It is")
    both = math.log(math.exp(-0.5) + math.exp(-2.0))
    assert read.token_logprobs == pytest.approx((both, -0.25))
    assert read.top_logprobs[0] == pytest.approx({"It": both, "He": -2.5})


def test_the_text_stands_behind_the_thought_that_came_apart():
    record = plain("8", " pens", ".", "8", "!")
    read, _ = read_logprobs(record, "8", thought="8 pens.")
    assert read == Logprobs(("8",), (-4.0,), ({"8": -4.0, " x": -9.0},))
    assert read_logprobs(record, "8")[0].token_logprobs == (-1.0,)


def test_a_thought_is_the_first_place_with_its_text():
    record = plain("<think>", "8", " pens", "</think>", "8")
    assert read_thought(record, "8").token_logprobs == (-2.0,)
    assert read_thought(record, "8 pens").tokens == ("8", " pens")
    assert (read_thought(record, ""), read_thought(record, "9"), read_thought(None, "8")) == (
        None,
        None,
        None,
    )


def test_the_thought_of_vllms_parser_has_log_probabilities():
    choice = real("vllm_0.32_reasoning_parser_chat")
    read = read_thought(choice["logprobs"], choice["message"]["reasoning"])
    entries = choice["logprobs"]["content"][:-1]  # without <|im_end|>
    assert read.tokens == tuple(entry["token"] for entry in entries)
    assert read.token_logprobs == tuple(entry["logprob"] for entry in entries)


def test_byte_level_strings_are_decoded():
    """vLLM 0.9 with some tokenizers; `bytes` are those of the string, too."""
    tokens = ["It", "\u0120is", "\u010a", "\u00c3", "\u00a9"]
    record = plain(*tokens)
    record["top_logprobs"][1]["\u0120was"] = -7.0
    read, _ = read_logprobs(record, "It is\n\u00e9")
    assert (read.tokens, read.token_logprobs) == (
        ("It", " is", "\n", "\u00e9"),
        (-1.0, -2.0, -3.0, -4.0 - 5.0),
    )
    assert read.top_logprobs[1] == {" is": -2.0, " x": -9.0, " was": -7.0}
    content = [entry(token, -1.0, bytes=list(token.encode())) for token in tokens]
    assert read_logprobs({"content": content}, "It is\n\u00e9")[0].tokens == read.tokens


def test_sentencepiece_pieces_are_decoded():
    read, _ = read_logprobs(plain("\u2581It", "\u2581is", "<0x0A>", "\u2581so"), "It is\n so")
    assert read.tokens == ("It", " is", "\n", " so")
    assert read.token_logprobs == (-1.0, -2.0, -3.0, -4.0)


@pytest.mark.parametrize(
    ("tokens", "text", "pairs"),
    [
        (
            ["It", "\ufffd", "\ufffd", " is"],
            "It\u2019 is",
            [("It", -1), ("\u2019", -2 - 3), (" is", -4)],
        ),
        (["1 \ufffd", "\ufffd2", "."], "1 \u20132.", [("1 \u20132", -1 - 2), (".", -3)]),
        (["\ufffd", "\ufffd\ufffd", "!"], "\u4f60\u597d!", [("\u4f60\u597d", -1 - 2), ("!", -3)]),
        (["a", "\ufffd", "\ufffd"], "a\u00e9", [("a", -1), ("\u00e9", -2 - 3)]),
    ],
)
def test_parts_of_characters_get_the_characters_of_the_text(tokens, text, pairs):
    """Ollama writes U+FFFD for each; nothing else tells which bytes they are."""
    read, reason = read_logprobs(plain(*tokens), text)
    assert reason == ""
    assert (read.tokens, read.token_logprobs) == kept(*pairs)


def test_a_special_token_that_the_text_leaves_out_does_not_count_twice():
    """Its own entry is the probability of all that follows it, of which the next token is one."""
    record = {
        "tokens": ["It", "<|x|>", " is"],
        "token_logprobs": [-1.0, -0.25, -0.125],
        "top_logprobs": [{}, {"<|x|>": -0.25, " was": -2.0}, {" is": -0.125}],
    }
    read, reason = read_logprobs(record, "It is")
    assert reason == ""
    assert read.top_logprobs == ({}, {" was": -2.0, " is": -0.375})


def real(name):
    path = Path(__file__).parents[1] / "fixtures" / "servers" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["response"]["choices"][0]


def test_llama_cpp_withholds_what_may_begin_a_stop_string():
    choice = real("llama_server_b11434_stop")
    read, reason = read_logprobs(choice["logprobs"], choice["text"])
    assert reason == ""
    assert "|".join(read.tokens) == "\n|2|+|3|=|5|\n|The| answer| is| |5|\n"
    values = [entry["logprob"] for entry in choice["logprobs"]["content"]]
    assert read.token_logprobs == tuple(values)
    assert all(
        top[token] == value
        for token, value, top in zip(read.tokens, values, read.top_logprobs, strict=True)
    )


@pytest.mark.parametrize("paper", ["fu2023", "magister2022", "kim2023"])
def test_a_chain_of_llama_cpp_is_cleaned_with_its_log_probabilities(paper):
    """The line break in front of the chain, which was withheld, costs its first token nothing."""
    choice = real("llama_server_b11434_stop")
    logprobs, _ = read_logprobs(choice["logprobs"], choice["text"])
    chain = PRESETS[paper].clean(Completion(choice["text"], logprobs, "stop"))
    assert chain.text == "".join(chain.logprobs.tokens) == "2+3=5\nThe answer is 5"
    entry = choice["logprobs"]["content"][1]
    top = {other["token"]: other["logprob"] for other in entry["top_logprobs"]}
    assert len(top) == 5 and chain.logprobs.top_logprobs[0] == top
    assert chain.logprobs.token_logprobs[0] == entry["logprob"]


def test_what_llama_cpp_withholds_may_be_another_entrys_alternative():
    """Drawn at a temperature, the token itself is not always among its own alternatives."""
    content = [
        entry("5", -0.5, ("5", -0.5, {"id": 3}), ("\n", -4.0, {"id": 8}), id=3),
        entry("", -2.5, (".", -0.25, {"id": 5}), id=8),
    ]
    read, reason = read_logprobs({"content": content}, "5\n")
    assert reason == ""
    assert (read.tokens, read.token_logprobs) == (("5", "\n"), (-0.5, -2.5))


def test_llama_cpp_withholds_the_end_of_a_token():
    """The stop string begins with its second newline; the alternatives have it whole."""
    ends = [("\n\n", -0.25, {"id": 7}), ("\n", -2.0, {"id": 8})]
    five = entry("5", -0.5, ("5", -0.5, {"id": 3}), id=3)
    record = {"content": [five, entry("\n", -0.25, *ends, id=7)]}
    read, reason = read_logprobs(record, "5\n")
    assert reason == ""
    assert read == Logprobs(("5", "\n"), (-0.5, -0.25), ({"5": -0.5}, {}))
    record["content"].append(entry("\nQ", -1.0, ("Q", -1.0, {"id": 9}), id=9))
    read, _ = read_logprobs(record, "5\n\nQ")  # it was no stop string
    assert read.tokens == ("5", "\n\n", "Q")
    assert read.top_logprobs[1] == {"\n\n": -0.25, "\n": -2.0}


def test_vllm_writes_a_character_with_its_last_part():
    choice = real("vllm_0.32_zh_partial_utf8")
    read, _ = read_logprobs(choice["logprobs"], choice["text"])
    assert "|".join(read.tokens) == "\u94c5|\u7b14|2|\u5143|\uff0c|6|\u5143"
    values = choice["logprobs"]["token_logprobs"]
    sums = [sum(values[:3]), sum(values[3:5]), values[5], sum(values[6:8]), *values[8:10]]
    assert read.token_logprobs == pytest.approx([*sums, sum(values[10:])])


def test_an_echo_whose_values_are_shifted_by_a_place_is_named():
    choice = real("llama_cpp_python_0.3.36_echo_shifted")
    read = read_echo(choice["logprobs"], "Q: 1+1?\nA:", " The answer is 2")
    assert read == (None, "shifted")


def test_without_a_prompt_the_first_token_has_no_probability():
    assert read_echo(echo(["It", " is"]), "", "It is") == (None, "no_probability")
    read, _ = read_echo(echo(["<s>", "It", " is"]), "", "It is")
    assert read.token_logprobs == (-1.0, -2.0)


def test_an_echo_of_other_text_is_named():
    assert read_echo(echo(["It", " is"]), "Q:", " It is") == (None, "tokens_do_not_join")
    assert read_echo(None, "Q:", " It is") == (None, "not_given")


@pytest.mark.parametrize("begin", [[], ["Q"]])
def test_prompt_logprobs(begin):
    """The first entry is None, whether it stands for <s> or for the prompt's first token."""
    entries = [
        None,
        *([{"5": {"logprob": -4.0, "decoded_token": "Q"}}] if not begin else []),
        {"6": {"logprob": -3.0, "rank": 1, "decoded_token": ":"}},
        {
            "7": {"logprob": -2.0, "rank": 9, "decoded_token": " It"},
            "8": {"logprob": -0.5, "rank": 1, "decoded_token": " He"},
        },
    ]
    expected = Logprobs((" It",), (-2.0,), ({" It": -2.0, " He": -0.5},))
    assert read_prompt_logprobs(entries, "Q:", " It") == (expected, "")


def test_prompt_logprobs_that_do_not_fit():
    entries = [None, {"6": {"logprob": -3.0, "decoded_token": "?"}}]
    assert read_prompt_logprobs(entries, "Q:", " It") == (None, "tokens_do_not_join")
    assert read_prompt_logprobs(None, "Q:", " It") == (None, "not_given")
