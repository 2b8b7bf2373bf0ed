import itertools
import json
import math
import re

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf
from support.data import write_cache

from cot_flax.data.mixtures import find_task
from cot_flax.data.registration import add_cot_task, cot_task
from cot_flax.data.sources import records_source
from cot_flax.errors import UserError
from cot_flax.lab.world.stories import make_stories
from cot_flax.text.prompts import FORMATS, Exemplar, build_input
from cot_flax.text.templates import TEMPLATES, Template
from cot_flax.text.wording import Wording

RATES = "cot_flax.data.registration.format_rates"
PROMPTING = "cot_flax.data.registration.prompting"
SHOTS = f"{PROMPTING}.shots"
FIXED = (
    Exemplar("Seven and one?", "7 + 1 = 8.", "8"),
    Exemplar("ONE and  two", "1 + 2 = 3.", "3"),
    Exemplar("Six and one?", "6 + 1 = 7.", "7"),
)


def rates(mixture):
    """Shares of the tasks of a mixture, by format."""
    provider = seqio.MixtureRegistry.get(mixture)
    weights = {task.name: provider.get_rate(task) for task in provider.tasks}
    name = mixture.removesuffix("_cot_mix")
    return {task.removeprefix(f"{name}_"): w for task, w in weights.items()}


def read(task, split="train", **settings):
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1, **settings
    )
    return list(dataset.as_numpy_iterator())


def elsewhere(splits):
    """Two exemplars of another source, the same in every split."""
    shown = [
        {"id": str(n), "question": f"Nine and {n}?", "rationale": "", "answer": str(9 + n)}
        for n in (1, 2)
    ]
    return records_source(lambda split: shown, splits)


def test_one_call_registers_four_formats_and_their_mixture(add_sums):
    before = set(seqio.TaskRegistry.names()), set(seqio.MixtureRegistry.names())
    add_sums()
    assert set(seqio.TaskRegistry.names()) - before[0] == {f"sums_{form}" for form in FORMATS}
    assert set(seqio.MixtureRegistry.names()) - before[1] == {"sums_cot_mix"}
    for form in FORMATS:
        assert cot_task(f"sums_{form}").format == form
        assert cot_task(f"sums_{form}").answer_kind == "number"


def test_formats_can_be_left_out(add_sums):
    add_sums(formats=("zero_shot_answer", "few_shot_answer"), answer_kind="text")
    names = {name for name in seqio.TaskRegistry.names() if name.startswith("sums_")}
    assert names == {"sums_zero_shot_answer", "sums_few_shot_answer"}
    assert rates("sums_cot_mix") == {"zero_shot_answer": 0.1, "few_shot_answer": 0.1}
    assert cot_task("sums_zero_shot_answer").answer_kind == "text"


def test_an_unknown_answer_kind_is_refused_before_a_model_is_trained(add_sums):
    with pytest.raises(UserError, match=r"answer kind 'nummer'; expected one of .*'number'.*add"):
        add_sums(answer_kind="nummer")


def test_an_unknown_format_is_refused(add_sums):
    with pytest.raises(UserError, match=r"format 'zero_shot_chain'; expected one of \('zero_shot"):
        add_sums(formats=("zero_shot_chain",))


@pytest.mark.parametrize("name", ["sums_zero_shot_cot", "sums_cot_mix"])
def test_what_add_cot_task_did_not_register_is_unknown(name):
    with pytest.raises(UserError, match=f"task '{name}'; expected one that add_cot_task"):
        cot_task(name)


def test_rates_are_bound_for_one_mixture_or_for_all(add_sums):
    add_sums()
    add_sums("more")
    default = dict(zip(FORMATS, (0.4, 0.4, 0.1, 0.1), strict=True))
    assert rates("sums_cot_mix") == rates("more_cot_mix") == default
    gin.bind_parameter(f"sums_cot_mix/{RATES}.few_shot_cot", 2.0)
    assert rates("sums_cot_mix") == default | {"few_shot_cot": 2.0}
    assert rates("more_cot_mix") == default
    gin.bind_parameter(f"{RATES}.zero_shot_answer", 0.0)
    assert rates("sums_cot_mix") == default | {"few_shot_cot": 2.0, "zero_shot_answer": 0.0}
    assert rates("more_cot_mix") == default | {"zero_shot_answer": 0.0}


def test_bound_rates_are_the_shares_of_what_is_drawn(add_sums, vocabulary):
    add_sums()
    for form, rate in zip(FORMATS, (3.0, 0.0, 1.0, 0.0), strict=True):
        gin.bind_parameter(f"sums_cot_mix/{RATES}.{form}", rate)
    assert set(FORMATS[:1] + FORMATS[2:3]) == {"zero_shot_cot", "zero_shot_answer"}
    dataset = seqio.MixtureRegistry.get("sums_cot_mix").get_dataset(
        sequence_length=None, split="train", shuffle=True, seed=0, num_epochs=None
    )
    n, p = 300, 0.75
    drawn = list(itertools.islice(dataset.as_numpy_iterator(), n))
    answers = [vocabulary.decode(e["targets"].tolist()).startswith("The answer") for e in drawn]
    assert abs(n - sum(answers) - n * p) <= 4 * math.sqrt(n * p * (1 - p))
    prompts = {vocabulary.decode(e["inputs"].tolist()).count("Q:") for e in drawn}
    assert prompts == {1}  # nothing few-shot


def test_seqios_own_metric_gives_the_accuracy(add_sums, vocabulary):
    """As SeqIO's evaluator calls it: with the tokens of a model's output."""
    add_sums()
    task = seqio.TaskRegistry.get("sums_zero_shot_cot")
    examples = read("sums_zero_shot_cot", "train")
    texts = ["1 + 1 = 2.\nThe answer is 2", "It is 3", "The answer is 9", "I do not know", ""]
    tokens = [[*vocabulary.encode(text), 1] for text in texts]
    output = np.array([row + [0] * (20 - len(row)) for row in tokens])
    (metric,) = task.metric_objs
    filled = metric.from_model_output(examples, output, task.output_features)
    values, _ = filled.actual_compute(examples, task.output_features)
    assert values == {"accuracy": 2 / 5, "parse_failures": 2 / 5}


def test_seqios_postprocessor_and_metric_functions(add_sums):
    add_sums()
    task = seqio.TaskRegistry.get("sums_zero_shot_answer")
    examples = read("sums_zero_shot_answer", "test")
    golds = [task.postprocess_fn("not read", example=e, is_target=True) for e in examples]
    assert golds == ["6", "7"]
    texts = ["The answer is 6", "The answer is 6"]
    predictions = [
        task.postprocess_fn(text, example=e, is_target=False)
        for text, e in zip(texts, examples, strict=True)
    ]
    assert predictions == texts
    (metric,) = task.metric_fns
    assert metric(golds, predictions) == {"accuracy": 0.5, "parse_failures": 0.0}


def test_other_fields_are_parsed_and_pass_through(vocabulary):
    raw = records_source(
        lambda split: [{"q": "One and one?", "n": 2, "steps": 1, "number": 7}], ["train"]
    )

    def parse(record):
        return {
            "id": tf.strings.as_string(record["number"]),
            "question": record["q"],
            "rationale": "1 + 1 = 2.",
            "answer": tf.strings.as_string(record["n"]),
            "steps": record["steps"],
        }

    add_cot_task("raw", raw, parse=parse, vocabulary=vocabulary)
    (e,) = read("raw_zero_shot_cot")
    assert e["inputs_pretokenized"] == b"Q: One and one?\nLet's think step by step"
    assert e["targets_pretokenized"] == b"1 + 1 = 2.\nThe answer is 2"
    assert (e["id"], e["steps"], e["answer"]) == (b"7", 1, b"2")


def test_exemplars_may_come_from_elsewhere(add_sums):
    add_sums(exemplars=elsewhere(["train"]))
    gin.bind_parameter(SHOTS, 1)
    for e in read("sums_few_shot_answer"):
        assert e["inputs_pretokenized"].startswith(b"Q: Nine and ")
        assert b" ### " in e["inputs_pretokenized"]


def test_exemplars_from_elsewhere_are_checked_for_leaks_too(add_sums):
    add_sums(exemplars=elsewhere(["train", "test"]))
    with pytest.raises(UserError, match=r"2 held-out question\(s\) in the exemplar pool"):
        read("sums_few_shot_answer")


def test_a_held_out_question_among_the_exemplars_is_a_leak(sums, vocabulary):
    leaking = sums | {"validation": [sums["train"][3] | {"question": "TWO and  three"}]}
    source = records_source(leaking.__getitem__, leaking)
    add_cot_task("leaking", source, vocabulary=vocabulary)
    assert len(read("leaking_zero_shot_cot")) == 5
    with pytest.raises(UserError, match=r"1 held-out question\(s\) in the exemplar pool"):
        read("leaking_few_shot_cot")


def test_too_many_shots_are_refused(add_sums):
    add_sums()
    gin.bind_parameter(SHOTS, 6)
    with pytest.raises(UserError, match="a pool of 5 exemplars"):
        read("sums_few_shot_cot", "test")


def test_exemplars_follow_what_gin_binds_later_in_the_process():
    for name, count in (("train", 12), ("validation", 2), ("test", 2)):
        gin.bind_parameter(f"cot_flax.tasks.stories.size.{name}", count)
    gin.bind_parameter(SHOTS, 2)
    for seed in (0, 1):
        gin.bind_parameter("cot_flax.tasks.stories.size.seed", seed)
        training = {story.question for story in make_stories(12, split="train", seed=seed)}
        for e in read("stories_few_shot_cot", "test"):
            *shown, _ = re.findall(r"Q: (.*?)\n", e["inputs_pretokenized"].decode())
            assert len(shown) == 2
            assert set(shown) <= training


# SeqIO's cache ------------------------------------------------------------------------------------


@pytest.fixture
def cache_dirs(tmp_path):
    before = list(seqio.utils.get_global_cache_dirs())
    seqio.add_global_cache_dirs([str(tmp_path)])
    yield tmp_path
    seqio.set_global_cache_dirs(before)


def test_a_cached_task_is_read_from_seqios_cache(add_sums, cache_dirs):
    """With the prompts that were bound when it was made, and none is made anew."""
    add_sums()
    gin.bind_parameter(SHOTS, 2)
    made = read("sums_few_shot_cot")
    write_cache(find_task("sums_few_shot_cot"), "train", cache_dirs)
    gin.bind_parameter(SHOTS, 3)
    cached, fresh = (read("sums_few_shot_cot", use_cached=flag) for flag in (True, False))
    assert [e["inputs"].tolist() for e in cached] == [e["inputs"].tolist() for e in made]
    assert [e["targets"].tolist() for e in cached] == [e["targets"].tolist() for e in fresh]
    assert [e["answer"] for e in cached] == [e["answer"] for e in fresh]
    assert len(cached[0]["inputs"]) < len(fresh[0]["inputs"])


@pytest.mark.parametrize("split", ["train", "test", "test[:1]"])
def test_what_is_not_in_the_cache_is_made_as_it_is_read(add_sums, split):
    """T5X's finetune.gin asks for the cache."""
    add_sums()
    (first, *_), (other, *_) = (
        read("sums_zero_shot_cot", split, use_cached=flag) for flag in (True, False)
    )
    assert first["inputs"].tolist() == other["inputs"].tolist()


# Cards --------------------------------------------------------------------------------------------


def test_a_card_is_what_was_said_and_bound(add_sums):
    add_sums(role="general", answer_kind="text", max_tokens=32, seen_by_flan=True)
    told = {"dataset": "sums", "answer_kind": "text", "role": "general", "max_tokens": 32}
    told |= {"seen_by_flan": True, "may_leak": "", "template": "t5", "instructed": False}
    told |= {"cue": "Let's think step by step", "closing": "The answer is {answer}"}
    zero = {"exemplars": None, "shots": 0, "seed": None}
    drawn = {"exemplars": "drawn", "shots": 4, "seed": 0}
    for form in FORMATS:
        card = cot_task(f"sums_{form}").to_json()
        shown = drawn if form.startswith("few") else zero
        assert card == {"name": f"sums_{form}", "format": form} | told | shown
        assert json.loads(json.dumps(card)) == card
    gin.bind_parameter(f"{PROMPTING}.seed", 7)
    assert cot_task("sums_few_shot_cot").to_json()["seed"] == 7


def test_the_wording_is_in_prompts_targets_metrics_and_card(add_sums):
    words = Wording("Pensemos", "El resultado sale", ("veredicto",))
    add_sums(wording=words, answer_kind="number")
    for form in FORMATS:
        (example, *_) = find_task(f"sums_{form}").get_dataset(split="test").as_numpy_iterator()
        prompt = example["inputs_pretokenized"].decode()
        target = example["targets_pretokenized"].decode()
        assert target.endswith(f"El resultado sale {example['answer'].decode()}")
        assert prompt.endswith("\nPensemos") == form.endswith("cot")
        assert "The answer is" not in prompt + target
        assert ("El resultado sale" in prompt) == form.startswith("few")
    card = cot_task("sums_zero_shot_cot")
    assert (card.cue, card.closing) == ("Pensemos", "El resultado sale {answer}")
    assert card.answer_kind == "number behind el resultado sale, veredicto"
    (metric,) = find_task("sums_zero_shot_cot").metric_fns
    texts = ["2 + 3 = 5. El resultado sale 5, no 6", "Veredicto: 5; 7 no", "Son 5"]
    assert metric(["5"] * 3, texts) == {"accuracy": 1.0, "parse_failures": 0.0}


def test_a_card_says_little_where_nothing_was_said(add_sums):
    add_sums()
    card = cot_task("sums_zero_shot_cot")
    assert (card.role, card.max_tokens, card.seen_by_flan) == ("train", None, False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"role": "test"}, r"role 'test' of sums; expected one of \('train', 'transfer', 'gene"),
        ({"max_tokens": 0}, "max_tokens 0 of sums; expected 1 or more"),
        ({"fixed_exemplars": FIXED, "exemplars": elsewhere(["train"])}, "one of the two"),
    ],
)
def test_what_a_card_cannot_be_is_refused_at_once(add_sums, settings, message):
    with pytest.raises(UserError, match=message):
        add_sums(**settings)
    assert "sums_zero_shot_cot" not in seqio.TaskRegistry.names()


# Prompts by task ----------------------------------------------------------------------------------


def shots(task, split="test"):
    return {e["inputs_pretokenized"].count(b"Q: ") - 1 for e in read(task, split)}


def test_a_tasks_scope_wins_over_its_data_sets_and_this_over_none(add_sums):
    add_sums()
    add_sums("more")
    gin.bind_parameter(SHOTS, 1)
    gin.bind_parameter(f"sums/{SHOTS}", 2)
    gin.bind_parameter(f"sums_few_shot_cot/{SHOTS}", 3)
    gin.bind_parameter(f"sums/{PROMPTING}.template", "fu2023")
    expected = {
        "more_few_shot_cot": (1, "t5"),
        "sums_few_shot_answer": (2, "fu2023"),
        "sums_few_shot_cot": (3, "fu2023"),
    }
    for task, (count, template) in expected.items():
        assert shots(task) == {count}
        card = cot_task(task)
        assert (card.shots, card.template) == (count, template)
        separator = b"\n\n" if template == "fu2023" else b" ### "
        assert all(e["inputs_pretokenized"].count(separator) == count for e in read(task))


@pytest.mark.parametrize("given", [FIXED, lambda: FIXED])
def test_fixed_exemplars_are_all_shown_in_order(add_sums, given):
    """Beside the same data set with drawn ones, more of them than a pool of fixed ones holds."""
    add_sums("fixed", fixed_exemplars=given)
    add_sums()
    gin.bind_parameter(SHOTS, 4)
    for form in ("few_shot_cot", "few_shot_answer"):
        for e in read(f"fixed_{form}", "test"):
            prompt = build_input(e["question"].decode(), form, FIXED)
            assert e["inputs_pretokenized"].decode() == prompt
        card = cot_task(f"fixed_{form}")
        assert (card.exemplars, card.shots, card.seed, card.template) == ("fixed", 3, None, "t5")
        assert shots(f"sums_{form}") == {4}


def test_a_fixed_exemplar_is_not_shown_for_its_own_question(add_sums):
    add_sums("fixed", fixed_exemplars=FIXED)
    for e in read("fixed_few_shot_cot", "train"):
        question = e["question"].decode()
        shown = FIXED[::2] if question == "One and two?" else FIXED
        assert e["inputs_pretokenized"].decode() == build_input(question, "few_shot_cot", shown)


def test_the_only_exemplar_is_not_shown_for_its_own_question(add_sums):
    add_sums("fixed", fixed_exemplars=FIXED[1:2])
    prompts = {e["question"]: e["inputs_pretokenized"] for e in read("fixed_few_shot_answer")}
    assert prompts[b"One and two?"] == b"Q: One and two? A:"
    assert prompts.pop(b"One and two?") and all(p.count(b"Q: ") == 2 for p in prompts.values())


def test_fixed_exemplars_are_asked_for_when_they_are_needed(add_sums):
    add_sums("fixed", fixed_exemplars=lambda: ())
    assert len(read("fixed_zero_shot_cot")) == 5
    with pytest.raises(UserError, match="no fixed exemplars; expected at least one"):
        read("fixed_few_shot_cot")


# Templates ----------------------------------------------------------------------------------------


def texts(task, split="test"):
    (example, *_) = read(task, split)
    return [example[f"{side}_pretokenized"].decode() for side in ("inputs", "targets")]


@pytest.mark.parametrize("given", ["ho2022", TEMPLATES["ho2022"], lambda: "ho2022"])
def test_a_data_sets_template_is_in_every_format_and_gin_may_bind_another(add_sums, given):
    add_sums(template=given, answer_kind="number")
    assert texts("sums_zero_shot_cot") == ["Five and one?", "5 + 1 = 6. --> 6"]
    assert texts("sums_few_shot_answer")[1] == "6"
    assert cot_task("sums_zero_shot_answer").template == "ho2022"
    gin.bind_parameter(f"sums/{PROMPTING}.template", "kim2023")
    own = Template(cot_target="{rationale} => {answer}", stop=" STOP")
    gin.bind_parameter(f"sums_zero_shot_cot/{PROMPTING}.template", own)
    assert texts("sums_zero_shot_cot")[1] == "5 + 1 = 6. => 6 STOP"
    assert texts("sums_few_shot_answer")[0].endswith(" ### Five and one?\n[ANSWER] ")
    card = cot_task("sums_zero_shot_cot")
    assert card.answer_kind == "number behind => up to STOP"
    assert card.to_json()["template"]["cot_target"] == "{rationale} => {answer}"
    (metric,) = find_task("sums_zero_shot_cot").metric_fns
    assert metric(["5"], ["2 + 3 = 5. => 5 STOP 6 => 7"])["accuracy"] == 1.0


def test_a_template_of_a_gin_file(add_sums):
    add_sums()
    gin.parse_config(
        "from __gin__ import dynamic_registration\n"
        "from cot_flax.data import registration\n"
        "from cot_flax.text import templates\n"
        "registration.prompting.template = @templates.Template()\n"
        "templates.Template.cot_input = 'Frage: {question} {cue}'\n"
    )
    assert texts("sums_zero_shot_cot")[0] == "Frage: Five and one? Let's think step by step"


@pytest.mark.parametrize("given", ["Add up.", lambda: "Add up."])
def test_an_instruction_stands_before_exemplars_and_question(add_sums, given):
    add_sums(instruction=given, fixed_exemplars=FIXED)
    for form in FORMATS:
        prompt, _ = texts(f"sums_{form}")
        shown = FIXED if form.startswith("few") else ()
        assert prompt == f"Add up. ### {build_input('Five and one?', form, shown)}"
        assert cot_task(f"sums_{form}").instructed


def test_an_unknown_template_is_refused_at_once(add_sums):
    with pytest.raises(UserError, match="template 't6'; expected one of t5, fu2023"):
        add_sums(template="t6")
    assert "sums_zero_shot_cot" not in seqio.TaskRegistry.names()
