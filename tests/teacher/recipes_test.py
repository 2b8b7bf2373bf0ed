import re
import subprocess
import sys
from dataclasses import replace

import pytest

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.teacher.questions import Question, read_exemplars, read_questions
from cot_flax.teacher.recipes import PRESETS, Overrides, complex_exemplars, make_recipe
from cot_flax.teacher.requests import Completion, Request
from cot_flax.text.prompts import FORMATS


def question(text, answer="", rationale="", category="", id="q"):
    return Question(id, "d", "train", text, answer, rationale, category)


EGGS = question("How many eggs?", "6", "Two nests.\n2 * 3 = 6 eggs.")
CARS = question("How many cars?", "5", "2 + 3 = 5 cars.")
ASKED = question("How many pens?", "8", id="pens")


def prompts(recipe, asked=ASKED):
    return [recipe.first(asked).prompt]


def test_fu2023_asks_as_the_paper_did():
    recipe = make_recipe("fu2023", exemplars=[EGGS, CARS], shots=2)
    prompt = (
        "Question: How many eggs?\nLet's think step by step\nTwo nests.\n2 * 3 = 6 eggs.\n"
        "The answer is 6\n\n"
        "Question: How many cars?\nLet's think step by step\n2 + 3 = 5 cars.\nThe answer is 5\n\n"
        "Question: How many pens?\nLet's think step by step"
    )
    assert recipe.first(ASKED) == Request(
        prompt, n=40, max_tokens=256, temperature=0.5, top_logprobs=5, stop=("\nQuestion:",)
    )
    assert recipe.next(ASKED, recipe.first(ASKED), Completion("x", None, "stop")) is None


def test_magister2022_gives_the_answer_first():
    recipe = make_recipe("magister2022", exemplars=[EGGS, CARS], shots=2)
    prompt = (
        "Q: How many eggs?\nA: (The correct answer is 6.) Two nests. 2 * 3 = 6 eggs."
        " The answer is 6.\n\n"
        "Q: How many cars?\nA: (The correct answer is 5.) 2 + 3 = 5 cars. The answer is 5.\n\n"
        "Q: How many pens?\nA: (The correct answer is 8.)"
    )
    assert recipe.first(ASKED) == Request(prompt, max_tokens=256, stop=("\nQ:",))


def test_ho2022_asks_twice():
    recipe = make_recipe("ho2022", samples=64, top_logprobs=5)
    first = recipe.first(question("How many pens?"))
    assert first == Request(
        "Q: How many pens?\nA: Let's think step by step.",
        n=64,
        max_tokens=128,
        temperature=0.7,
        top_logprobs=5,
    )
    second = recipe.next(ASKED, first, Completion(" Two fours.", None, "stop"))
    assert second == Request(
        "Q: How many pens?\nA: Let's think step by step. Two fours.\nTherefore, the answer is",
        max_tokens=128,
        top_logprobs=5,
        stop=("\n",),
    )


def test_the_second_step_ends_with_the_line_of_the_answer():
    """Where that line is empty, it is asked for once more without a stop; a chat ends by itself."""
    recipe = make_recipe("ho2022", stop=("\n\nQ:", "END"))
    first = recipe.first(ASKED)
    second = recipe.next(ASKED, first, Completion(" Two fours.", None, "stop"))
    assert (first.stop, second.stop) == (("\n\nQ:", "END"), ("\n", "END"))
    assert recipe.next_line(second, Completion(" 8.", None, "stop")) is None
    assert recipe.next_line(second, Completion("", None, "length")) is None
    again = recipe.next_line(second, Completion(" ", None, "stop"))
    assert again == replace(second, stop=("END",))
    assert recipe.next_line(again, Completion("", None, "stop")) is None
    chat = make_recipe("ho2022", chat=True)
    asked = chat.next(ASKED, chat.first(ASKED), Completion(" Two fours.", None, "stop"))
    assert asked.stop == ()


def test_ho2022_in_a_chat():
    recipe = make_recipe("ho2022", chat=True)
    first = recipe.first(ASKED)
    asked = {"role": "user", "content": "Q: How many pens?\nA: Let's think step by step."}
    assert first.prompt == (asked,)
    assert recipe.next(ASKED, first, Completion("Two fours.", None, "stop")).prompt == (
        asked,
        {"role": "assistant", "content": "Two fours."},
        {"role": "user", "content": "Therefore, the answer is"},
    )


def two_steps(chain, answer, *, chat=False):
    recipe = make_recipe("ho2022", chat=chat)
    first = recipe.first(ASKED)
    return recipe.sample_of(ASKED, chain, recipe.next(ASKED, first, chain), answer)


def test_ho2022_joins_its_two_steps():
    chain = Completion(
        "\nTwo fours.", Logprobs(("\n", "Two", " fours", "."), (-1, -2, -3, -4), ({},) * 4), "stop"
    )
    answer = Completion(
        " 8.\n\nQ:",
        Logprobs((" 8", ".", "\n\n", "Q:"), (-5, -6, -7, -8), ({"x": -9},) * 4),
        "length",
    )
    assert two_steps(chain, answer) == Completion(
        "Two fours.\nTherefore, the answer is 8.",
        Logprobs(
            ("Two", " fours", ".", "\nTherefore", ",", " the", " answer", " is", " 8", "."),
            (-2, -3, -4, 0.0, 0.0, 0.0, 0.0, 0.0, -5, -6),
            ({},) * 8 + ({"x": -9},) * 2,
        ),
        "stop",
    )


@pytest.mark.parametrize(
    ("answer", "chat", "text"),
    [
        ("8.", False, "Two.\nTherefore, the answer is 8."),
        ("\n\n8.\nQ: more", False, "Two.\nTherefore, the answer is 8."),
        ("8", True, "Two.\nTherefore, the answer is 8"),
        ("Therefore, the answer is **8**.", True, "Two.\nTherefore, the answer is **8**."),
        ("That makes:\n8", True, "Two.\nTherefore, the answer is That makes:\n8"),
    ],
)
def test_ho2022_joins_what_teachers_write(answer, chat, text):
    sample = two_steps(
        Completion("Two.", None, "stop"), Completion(answer, None, "stop"), chat=chat
    )
    assert sample == Completion(text, None, "stop")


def test_a_chain_that_was_cut_stays_marked():
    cut, whole = Completion("Two", None, "length"), Completion(" 8.", None, "stop")
    assert two_steps(cut, whole).finish_reason == "length"
    assert two_steps(whole, cut).finish_reason == "length"


FLAN = "Where do bees live?\nOptions:\n- hive\n- sea"
BEES = question(FLAN, "hive", "Bees build combs.", "bio")
ANIMALS = [question(f"What is animal {i}?", f"a{i}", f"Reason {i}.", "bio") for i in range(4)]


def test_kim2023_shows_the_category():
    pool = [CARS, BEES, *ANIMALS]
    recipe = make_recipe("kim2023", pool=pool, shots=4)
    asked = question("What swims?\nOptions:\n(A) fish\n(B) ox", "(A)", category="bio")
    prompt = (
        "[Example 1]\n[Instruction and Question]\nWhere do bees live?\n\n"
        "[Options]\n- hive\n- sea\n\n[Answer]\nhive\n\n[Rationale]\nBees build combs.\n\n\n\n"
        "[Example 2]\n[Instruction and Question]\nWhat is animal 0?\n\n"
        "[Answer]\na0\n\n[Rationale]\nReason 0.\n\n\n\n"
        "[Example 3]\n[Instruction and Question]\nWhat is animal 1?\n\n"
        "[Answer]\na1\n\n[Rationale]\nReason 1.\n\n\n\n"
        "[Example 4]\n[Instruction and Question]\nWhat is animal 2?\n\n"
        "[Answer]\na2\n\n[Rationale]\nReason 2.\n\n\n\n"
        "[Example 5]\n[Instruction and Question]\nWhat swims?\n\n"
        "[Options]\n- (A) fish\n- (B) ox\n\n[Answer]\n(A)\n\n[Rationale]\n"
    )
    assert recipe.first(asked) == Request(
        prompt,
        n=5,
        max_tokens=1024,
        temperature=0.7,
        top_p=0.95,
        presence_penalty=1.0,
        frequency_penalty=1.0,
        stop=("\n\n\n\n", "\n\n\n"),
        top_logprobs=1,
    )


def test_kim2023_drops_the_last_demonstrations_of_a_long_prompt():
    """Four characters a token: 3,900 tokens are 15,600 characters, three of these fit."""
    pool = [question(f"animal {i}?", "x", str(i) * 5000, "bio") for i in range(4)]
    recipe = make_recipe("kim2023", pool=pool)
    (prompt,) = prompts(recipe, question("What swims?", "fish", category="bio"))
    assert re.findall(r"\[Example \d\]\n\[Instruction and Question\]\n(.*)", prompt) == [
        "animal 0?",
        "animal 1?",
        "animal 2?",
        "What swims?",
    ]
    (alone,) = prompts(recipe, question("a" * 20000, "fish", category="bio"))
    assert alone.startswith("[Example 1]\n[Instruction and Question]\naaa")


def test_params_are_what_was_asked_for():
    recipe = make_recipe("fu2023", exemplars=[EGGS], shots=1, samples=2, temperature=0.9)
    assert recipe.params == {
        "recipe": "fu2023",
        "samples": 2,
        "temperature": 0.9,
        "max_tokens": 256,
        "shots": 1,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop": ["\nQuestion:"],
        "top_logprobs": 5,
        "teachers_own": ["top_k", "min_p", "repetition_penalty"],
    }
    asked = make_recipe("fu2023", exemplars=[EGGS], shots=1, top_k=0, min_p=0.0, seed=3).params
    assert asked["teachers_own"] == ["repetition_penalty"]
    assert (asked["top_k"], asked["min_p"], asked["seed"]) == (0, 0.0, 3)


def test_formats_tell_whether_the_teacher_saw_exemplars():
    formats = {name: preset.format for name, preset in PRESETS.items()}
    assert set(formats.values()) <= set(FORMATS)
    assert formats == {
        "fu2023": "few_shot_cot",
        "magister2022": "few_shot_cot",
        "ho2022": "zero_shot_cot",
        "kim2023": "few_shot_cot",
    }


def test_a_chat_gets_the_same_text():
    settings = {"exemplars": [EGGS], "shots": 1}
    (text,) = prompts(make_recipe("fu2023", **settings))
    (chat,) = prompts(make_recipe("fu2023", chat=True, **settings))
    assert chat == ({"role": "user", "content": text},)


@pytest.mark.parametrize(
    ("name", "text", "kept", "finish_reason"),
    [
        ("fu2023", "\nTwo.\nThe answer is 8\n\nQuestion: 9", "Two.\nThe answer is 8", "stop"),
        (
            "fu2023",
            "\nSo the answer is 8, I say.\nThe answer is 9",
            "So the answer is 8, I say.",
            0,
        ),
        ("fu2023", "\nTwo.\nThe answer is 1", "Two.\nThe answer is 1", "length"),
        ("fu2023", "\nTwo.\n", "Two.", "length"),
        ("magister2022", " Two. The answer is 8.\n\nQ: 9", " Two. The answer is 8.", "stop"),
        ("kim2023", "As hive.\n\n\n[Example 9]", "As hive.", "stop"),
        ("kim2023", "As hive.\n[Example 9]", "As hive.", "stop"),
        ("kim2023", "As hive.\n```\ncode", "As hive.", "stop"),
        ("kim2023", "As hive.\n\nOr wax (see [1]).", "As hive.\n\nOr wax (see [1]).", "length"),
    ],
)
def test_each_paper_keeps_its_part_of_a_completion(name, text, kept, finish_reason):
    recipe = make_recipe(name)
    found = recipe.sample_of(ASKED, Completion(text, None, "length"), None, None)
    assert found == Completion(kept, None, finish_reason or "stop")


def test_no_recipe_reads_a_thought_as_the_answer():
    text = "<think>Maybe the answer is 5?\nNo.</think>\nTwo fours.\nThe answer is 8\n\nQuestion: 9"
    for name in ("fu2023", "magister2022", "kim2023"):
        found = make_recipe(name).sample_of(ASKED, Completion(text, None, "stop"))
        assert found.text.startswith("Two fours.\nThe answer is 8")
        assert found.thought == "Maybe the answer is 5?\nNo."


def test_the_second_step_follows_on_the_text_alone():
    recipe = make_recipe("ho2022", chat=True)
    first = recipe.first(ASKED)
    chain = Completion("<think>Hm.</think>Two fours.", None, "stop")
    second = recipe.next(ASKED, first, chain)
    assert second.prompt[1] == {"role": "assistant", "content": "Two fours."}
    answer = Completion("<think>4 + 4</think>8", None, "stop")
    found = recipe.sample_of(ASKED, chain, second, answer)
    assert (found.text, found.thought) == ("Two fours.\nTherefore, the answer is 8", "Hm.\n4 + 4")


def test_no_second_step_follows_on_a_thought_that_was_cut_off():
    recipe = make_recipe("ho2022")
    first = recipe.first(ASKED)
    assert recipe.next(ASKED, first, Completion("<think>Hm", None, "length")) is None
    assert recipe.next(ASKED, first, Completion("<think>Hm", None, "stop")) is not None


def test_complex_exemplars_have_the_most_steps():
    three = question("c?", "1", "x\n\ny\nz")
    also_three = question("b?", "1", "1+1=2, 2+1=3, 3+1=4")
    two = question("a?", "1", "1+1=2, 2+1=3, 3+1=4\nso")
    one = question("d?", "1", "no sums")
    unusable = [question("e?", "", "x\n" * 9), question("f?", "1"), question("C ?", "2", "x\n" * 9)]
    items = [one, two, three, also_three, *unusable]
    assert complex_exemplars(items) == [also_three, three, two, one]
    assert complex_exemplars(items[3::-1]) == [also_three, three, two, one]


def test_the_most_complex_of_gsm8k_are_those_of_the_paper(shared_data):
    """Six of the eight in the authors' `prompt_complex.txt` are among our first eight."""
    path = shared_data / "gsm8k" / "train.jsonl"
    pool = list(read_questions(path, dataset="gsm8k", split="train"))
    starts = {item.question[:14] for item in complex_exemplars(pool)[:8]}
    assert starts >= {
        "Angelo and Mel",
        "Mark's basketb",
        "Bella has two ",
        "A group of 4 f",
        "Sam bought a d",
        "In a certain s",
    }
    (prompt,) = prompts(make_recipe("fu2023", pool=pool), pool[0])
    assert prompt.count("Question: ") == prompt.count("Let's think step by step") == 9
    assert prompt.count("The answer is ") == 8


def test_a_question_is_never_shown_to_itself():
    recipe = make_recipe("fu2023", pool=[EGGS, CARS, question("Pens?", "1", "x")], shots=2)
    (prompt,) = prompts(recipe, question("how many EGGS"))
    assert "nests" not in prompt
    assert prompt.count("The answer is") == 2


def test_exemplars_are_shown_as_given_and_a_pool_is_chosen_from():
    longest_last = [CARS, EGGS]
    for given, first in (("exemplars", "cars"), ("pool", "eggs")):
        (prompt,) = prompts(make_recipe("fu2023", **{given: longest_last}, shots=2))
        assert prompt.startswith(f"Question: How many {first}?")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("fu2023", {"pool": [EGGS, CARS]}, "2 worked questions to show before pens; expected 8"),
        ("fu2023", {"exemplars": [ASKED], "shots": 1}, "0 worked questions"),
        ("kim2023", {"pool": ANIMALS}, "0 worked questions .*before pens; expected 4"),
    ],
)
def test_too_few_exemplars_are_an_error(name, given, message):
    with pytest.raises(UserError, match=message):
        make_recipe(name, **given).first(ASKED)


@pytest.mark.parametrize("name", ["magister2022", "kim2023"])
def test_a_hint_needs_an_answer(name):
    with pytest.raises(UserError, match="question q7 without an answer"):
        make_recipe(name, pool=ANIMALS, shots=1).first(question("Why?", category="bio", id="q7"))


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("wei2022", {}, "recipe 'wei2022'; expected one of fu2023, magister2022, ho2022, kim2023"),
        ("ho2022", {"samples": 0}, "samples 0"),
        ("ho2022", {"temperature": -0.1}, "temperature -0.1"),
        ("ho2022", {"max_tokens": 0}, "max_tokens 0"),
        ("ho2022", {"per_request": 0}, "per_request 0"),
        ("ho2022", {"shots": 1}, "1 shots and 0 exemplars for ho2022"),
        ("ho2022", {"exemplars": [EGGS]}, "0 shots and 1 exemplars for ho2022"),
        ("fu2023", {"shots": 0}, "0 shots and 0 exemplars for fu2023"),
    ],
)
def test_what_cannot_be_asked_is_an_error(name, given, message):
    with pytest.raises(UserError, match=message):
        make_recipe(name, **given)


def test_needs_no_framework():
    code = (
        "import sys\n"
        "import cot_flax.teacher.recipes, cot_flax.teacher.scenario\n"
        "print(*{'tensorflow', 'seqio', 'gin', 'jax'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_overrides_are_numbers_in_the_form_that_requests_are_keyed_by():
    """An int, a list or a 0 of a configuration is the same request as what options give."""
    assert Overrides().given() == {}
    given = Overrides(2, temperature=1, stop=["a"], top_p=1, top_logprobs=0).given()
    expected = {"samples": 2, "temperature": 1.0, "top_p": 1.0, "stop": ("a",)}
    assert given == expected | {"top_logprobs": None}
    assert type(given["temperature"]) is type(given["top_p"]) is float
    asked = [
        make_recipe("ho2022", **numbers).first(ASKED).key("teacher")
        for numbers in (given, expected)
    ]
    assert asked[0] == asked[1]


def test_all_exemplars_of_a_prompt_are_shown_as_they_are_written(tmp_path):
    """Paper [1] shows the same eight whatever is asked; a question itself is left out."""
    items = [
        f"Question: {n} + {n}?\nLet's think step by step\nTwice {n}.\n{n} + {n} = {2 * n}.\n"
        f"The answer is {2 * n}\n"
        for n in range(8)
    ]
    (tmp_path / "complex.txt").write_text("\n".join(items))
    shown, _ = read_exemplars(tmp_path / "complex.txt", dataset="gsm8k")
    recipe = make_recipe("fu2023", exemplars=shown, shots=len(shown))
    asked = Question("q", "gsm8k", "train", "Nine?")
    expected = "\n".join([*items, "Question: Nine?\nLet's think step by step"])
    assert recipe.prompt(asked) == expected
    own = replace(asked, question="3 + 3 ?")
    assert recipe.prompt(own).count("Question: ") == 8
