"""Tests of asking a student: its prompts are those of training, its votes are counted."""

import json
import subprocess
import sys
from pathlib import Path

import gin
import pytest

from cot_flax import load, run_folder
from cot_flax.data.registration import add_cot_task, prompter_of
from cot_flax.data.sources import records_source
from cot_flax.errors import EXTRAS, UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.serving.asking import vote
from cot_flax.tasks import scenario as scenario_task
from cot_flax.tasks import stories
from cot_flax.text.prompting import Prompting
from cot_flax.text.prompts import Exemplar
from cot_flax.text.wording import Wording

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUESTION = "Anna has 3 coins. First, Anna finds 2 coins. How many coins does Anna have now?"
SHOWN = (Exemplar("One and one?", "1 + 1 = 2", "2"), Exemplar("Two and two?", "2 + 2 = 4", "4"))


@pytest.fixture(scope="module")
def student(run):
    return load(run)


@pytest.mark.parametrize("format", ["zero_shot_cot", "zero_shot_answer"])
def test_the_prompt_is_that_of_training(format, student):
    prompt, _ = student.prompt_of(QUESTION, format)
    assert prompt == prompter_of(f"stories_{format}")(QUESTION, "any")


@pytest.mark.parametrize("format", ["few_shot_cot", "few_shot_answer"])
def test_exemplars_of_the_run_are_shown_where_they_were_drawn(format, student):
    prompt, _ = student.prompt_of(QUESTION, format)
    shown = prompt.split(" ### ")[:-1]
    questions = {record["question"] for record in stories._records("train")}
    asked = [text.removeprefix("Q: ").partition("?")[0] + "?" for text in shown]
    assert len(set(asked)) == 4 and questions.issuperset(asked)


def test_the_prompt_of_a_scenario_is_its_tasks(write_run, run):
    folder = EXAMPLES / "triage"
    gin.clear_config()
    gin.bind_parameter("cot_flax.tasks.scenario.data.directory", str(folder))
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", str(VOCABULARY_PATH))
    tasks = ["scenario_zero_shot_cot", "scenario_few_shot_cot"]
    trained = load(write_run(tasks))
    from_folder = load(run)
    for task in tasks:
        expected = prompter_of(task)("The hall is dark.", "")
        format = task.removeprefix("scenario_")
        assert trained.prompt_of("The hall is dark.", format)[0] == expected
        found, prompting = from_folder.prompt_of("The hall is dark.", format, scenario=folder)
        assert found == expected
        assert prompting.kind == trained.prompting_of(format).kind
    assert from_folder.prompt_of("The hall is dark.", scenario=folder)[0] == expected
    gin.clear_config()
    assert scenario_task.SOURCE is not None


def test_an_exemplar_is_never_the_question_itself(student):
    shown = student.prompt_of("one AND one", exemplars=SHOWN)[0]
    assert shown == (
        "Q: Two and two?\nLet's think step by step\n2 + 2 = 4\nThe answer is 4 ### "
        "Q: one AND one\nLet's think step by step"
    )
    alone = student.prompt_of("One and one?", exemplars=SHOWN[:1])[0]
    assert alone == "Q: One and one?\nLet's think step by step"


def test_answers_are_the_generators_texts(student):
    found = student.answer([QUESTION, "How many coins?"], format="zero_shot_answer")
    prompts = [f"Q: {question} A:" for question in (QUESTION, "How many coins?")]
    drawn = student.generator.generate(prompts, max_tokens=24)
    assert [one.text for one in found] == [texts[0].text for texts in drawn]
    assert [one.prompt for one in found] == prompts
    assert student.generate(prompts) == [[texts[0].text] for texts in drawn]
    assert student.answer(QUESTION, format="zero_shot_answer") == found[0]
    few = student.answer(QUESTION, max_tokens=3).text
    assert len(student.generator.tokenizer.encode(few)) <= 3


def test_several_samples_are_drawn_and_vote(student):
    found = student.answer(QUESTION, samples=6, seed=1)
    assert len(found.texts) == 6 and len(set(found.texts)) > 1
    assert found == student.answer(QUESTION, samples=6, seed=1)
    assert found.texts != student.answer(QUESTION, samples=6, seed=2).texts


IS = "The answer is {}".format


@pytest.mark.parametrize(
    ("texts", "answer", "text", "votes", "tied", "unread"),
    [
        ([IS(3), IS(5), f"5 + 0. {IS(5)}"], "5", 1, {"5": 2, "3": 1}, (), 0),
        (["hm", IS(3), "The answer is", IS(5)], "3", 1, {"3": 1, "5": 1}, ("3", "5"), 2),
        (["well", "no"], None, 0, {}, (), 2),
    ],
)
def test_the_most_frequent_answer_wins(texts, answer, text, votes, tied, unread):
    found = vote("q", "p", texts, Prompting.of_template().read)
    assert (found.answer, found.text, found.votes) == (answer, texts[text], votes)
    assert (found.tied, found.unread) == (tied, unread)


def test_a_run_on_different_prompts_asks_whose(write_run):
    asks = Wording("Pensemos", "La respuesta es")
    records = [{"id": str(i), "question": f"q{i}", "rationale": "r", "answer": "1"} for i in "ab"]
    source = records_source(lambda split: records, ("train",))
    add_cot_task(
        "sums_of_serving",
        source,
        wording=asks,
        vocabulary=stories.VOCABULARY,
        formats=["zero_shot_cot"],
    )
    folder = write_run(["stories_zero_shot_cot", "sums_of_serving_zero_shot_cot"])
    with pytest.raises(UserError, match="expected one of stories, sums_of_serving; say whose"):
        load(folder)
    chosen = load(folder, dataset="sums_of_serving")
    assert chosen.prompt_of("q?")[0] == "Q: q?\nPensemos"
    assert chosen.prompting[""].read("bien. La respuesta es 4") == "4"
    with pytest.raises(UserError, match=r"data set 'sums' of .*expected one of stories, sums_of"):
        load(folder, dataset="sums")


def test_a_template_by_name_for_what_says_nothing(run, write_run, fixtures):
    assert load(run, template="ho2022").prompt_of("Why?")[0] == "Why?"
    folder = write_run([])
    with pytest.raises(UserError, match=r"does not say how prompts look; .*--template t5"):
        load(folder)
    assert load(folder, template="t5").prompt_of("q?", "zero_shot_answer")[0] == "Q: q? A:"
    (folder / "spiece.model").unlink()
    with pytest.raises(UserError, match=r"spiece.model, nor tokenizer.json.*--tokenizer FILE"):
        load(folder, template="t5")
    assert load(folder, template="t5", tokenizer=VOCABULARY_PATH).max_tokens == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"question": " "}, "an empty question"),
        ({"samples": 0}, "got 0 samples"),
        ({"samples": 2, "temperature": 0}, "2 samples at temperature 0"),
        ({"temperature": -1}, "temperature -1"),
        ({"format": "two_shot"}, "format 'two_shot'"),
        ({"scenario": "/nowhere"}, "/nowhere/instruction.md"),
    ],
)
def test_what_cannot_be_asked_is_said(arguments, message, student):
    with pytest.raises(UserError, match=message):
        student.answer(**{"question": "q?"} | arguments)


def test_few_shots_of_a_run_without_exemplars_are_asked_for(write_run):
    with pytest.raises(UserError, match="format few_shot_cot and no exemplars"):
        load(write_run(["stories_zero_shot_cot"])).answer("q?", format="few_shot_cot")


def test_facts_that_are_broken_are_named(write_run):
    folder = write_run(["stories_zero_shot_cot"])
    facts = run_folder.read_facts(folder)
    del facts["data"]["prompts"]["stories_zero_shot_cot"]["heads"]
    (folder / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match=r"run.json \(KeyError: 'heads'\)"):
        load(folder)


def test_the_core_alone_answers_and_importing_it_is_light(run):
    program = (
        "import sys, time\n"
        f"for name in {[name for names in EXTRAS.values() for name in names]!r}:\n"
        "    sys.modules[name] = None\n"
        "import cot_flax\n"
        "print(len({'jax', 'numpy', 'flax', 'orbax'} & sys.modules.keys()))\n"
        f"found = cot_flax.load({str(run)!r}).answer('How many coins?', max_tokens=2)\n"
        "print(found.prompt)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("0\nQ: How many coins?\n")
