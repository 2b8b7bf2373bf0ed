"""Tests of the record of a run's prompts: it comes back as it was; chats and exemplars."""

import json

import pytest

from cot_flax.errors import UserError
from cot_flax.text.prompting import Prompting
from cot_flax.text.prompts import Exemplar
from cot_flax.text.templates import TEMPLATES
from cot_flax.text.wording import ENGLISH, Wording

SHOWN = (Exemplar("One and one?", "1 + 1 = 2", "2"), Exemplar("Two and two?", "2 + 2 = 4", "4"))


def test_it_comes_back_from_json():
    layout = TEMPLATES["fu2023"].worded(Wording("Pensemos", "La respuesta es"))
    own = Prompting(layout, "Cuenta.", "choice", ("a", "b"), ("La respuesta es",), SHOWN, 1)
    assert Prompting.from_json(json.loads(json.dumps(own.to_json())), "here") == own
    with pytest.raises(UserError, match=r"here \(KeyError: 'shots'\)"):
        Prompting.from_json({n: v for n, v in own.to_json().items() if n != "shots"}, "here")


@pytest.mark.parametrize(
    ("prompting", "text", "answer"),
    [
        (Prompting.of_template(), "2 + 2 = 4. The answer is 4", "4"),
        (Prompting.of_template("ho2022_decoder_only"), "2 + 2 --> 4 END and 5", "4"),
        (Prompting.of_template("t5", Wording("Pensemos", "Resulta")), "es 3. Resulta 4", "4"),
        (
            Prompting(TEMPLATES["t5"].worded(ENGLISH), labels=("ham", "spam")),
            "Is it spam? Ham?",
            None,
        ),
        (Prompting(TEMPLATES["t5"].worded(ENGLISH), labels=("ham", "spam")), "Spam", "spam"),
        (Prompting.of_template(), "nobody knows", None),
    ],
)
def test_answers_are_read_behind_the_words_of_the_template(prompting, text, answer):
    assert prompting.read(text) == answer


def test_shots_are_drawn_for_each_question_and_never_it():
    own = Prompting(TEMPLATES["t5"].worded(ENGLISH), exemplars=SHOWN, shots=1)
    for shown, question in (SHOWN, SHOWN[::-1]):
        prompt = own.prompt(question.question.upper(), "few_shot_answer")
        assert prompt == (
            f"Q: {shown.question}\nA: The answer is {shown.answer} ### "
            f"Q: {question.question.upper()}\nA:"
        )


def test_a_chats_turns_stand_as_exemplars_do():
    own = Prompting(TEMPLATES["ho2022_decoder_only"].worded(ENGLISH), "Add.", exemplars=SHOWN[:1])
    turns = [("user", "Two and two?"), ("assistant", "4"), ("user", "And one?")]
    assert own.chat(turns, "zero_shot_cot") == "Add.\n\nTwo and two? ### 4\n\nAnd one? ###"
    assert own.chat(turns, "few_shot_cot") == (
        "Add.\n\nTwo and two? ### 4\n\nOne and one? ### 1 + 1 = 2 --> 2 END\n\nAnd one? ###"
    )
    system = ("system", "Be brief.")
    assert own.chat([system, *turns[-1:]], "zero_shot_cot") == "Be brief.\n\nAnd one? ###"
