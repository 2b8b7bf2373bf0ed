"""Tests of evaluation with a tiny student that nobody trained, and with outputs made up here."""

import dataclasses
import io
import json
import os
from datetime import datetime, timedelta

import gin
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import cot_flax
from cot_flax import configuration
from cot_flax.data import mixtures
from cot_flax.data.features import fingerprint
from cot_flax.data.registration import cot_task
from cot_flax.errors import UserError
from cot_flax.evaluation import evaluate, evaluators, outputs
from cot_flax.evaluation.error_classes import calculated, tally
from cot_flax.evaluation.evaluate import Decoding
from cot_flax.evaluation.evaluators import AccuracyEvaluator
from cot_flax.evaluation.summary import summarize
from cot_flax.generation import generator
from cot_flax.generation.beam import beam_search
from cot_flax.generation.decoding import decode
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.tasks import abilities  # noqa: F401 (registers)
from cot_flax.tasks.stories import VOCABULARY
from cot_flax.text.prompts import FORMATS
from cot_flax.text.scoring import wilson_interval
from cot_flax.training.checkpoints import Checkpointer, Metadata
from cot_flax.training.sharding import MeshConfig
from cot_flax.training.state import TrainState

CONFIG = T5Config(
    vocab_size=256,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    head_dim=4,
    mlp_dim=32,
)
COT, ANSWER = "stories_zero_shot_cot", "stories_zero_shot_answer"
TASKS = COT, "word_sorting_zero_shot_answer"
CARD = cot_task(COT)
STORIES = 10
SAMPLED = Decoding(max_tokens=5, batch_size=4, samples=2, temperature=1.0, seed=3)


@pytest.fixture(autouse=True)
def _small_world():
    gin.clear_config()
    for split in ("train", "validation", "test"):
        gin.bind_parameter(f"cot_flax.tasks.stories.size.{split}", STORIES)
    yield
    gin.clear_config()


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def student():
    module = T5Student(CONFIG)
    return module, jax.jit(module.init)(jax.random.key(0))["params"]


def save(folder, params, vocabulary):
    state = TrainState(jnp.int32(7), params, (), jax.random.PRNGKey(0))
    checkpointer = Checkpointer(str(folder), period=1, keep=1)
    checkpointer.save(state, Metadata(dataclasses.asdict(CONFIG), vocabulary, 7), step=7)
    checkpointer.close()
    return str(folder)


@pytest.fixture(scope="module")
def checkpoint(student, tmp_path_factory):
    return save(tmp_path_factory.mktemp("run"), student[1], fingerprint(VOCABULARY))


@pytest.fixture(scope="module")
def evaluated(checkpoint, tmp_path_factory):
    """The folder and the returned results of one evaluation of two tasks."""
    gin.bind_parameter("cot_flax.tasks.stories.size.test", STORIES)
    folder = tmp_path_factory.mktemp("test") / "new"
    results = evaluate.evaluate(
        checkpoint_path=checkpoint,
        output_dir=str(folder),
        mixture_or_task_name=(COT, "word_sorting_zero_shot_answer"),
        decoding=SAMPLED,
        max_examples=6,
        mesh=MeshConfig(data=1),
    )
    return folder, results


def rows_of(evaluated, task):
    with open(evaluated[0] / "predictions.jsonl") as lines:
        rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["task"] == task]


def test_predictions_have_the_promised_fields(evaluated):
    examples = evaluate.read_examples(COT, "test", 6)
    rows = rows_of(evaluated, COT)
    for row, e in zip(rows, examples * 2, strict=True):
        assert row.keys() == {
            *("task", "dataset", "format", "role", "answer_kind", "id", "question", "prompt"),
            *("gold", "sample", "text", "cut_off", "extracted", "right", "steps"),
        }
        assert (row["dataset"], row["format"]) == ("stories", "zero_shot_cot")
        assert (row["role"], row["answer_kind"]) == (CARD.role, CARD.answer_kind)
        assert row["question"] == e["question"].decode()
        assert row["id"] == e["id"].decode()
        assert row["prompt"] == e["inputs_pretokenized"].decode()
        assert row["gold"] == e["answer"].decode()
        assert row["steps"] == e["steps"]
        assert isinstance(row["right"], bool)
    assert all("steps" not in row for row in rows_of(evaluated, "word_sorting_zero_shot_answer"))


def test_two_samples_are_two_rows_a_prompt_and_differ(evaluated):
    for task in (COT, "word_sorting_zero_shot_answer"):
        rows = rows_of(evaluated, task)
        assert [row["sample"] for row in rows] == [0] * 6 + [1] * 6
        first, second = rows[:6], rows[6:]
        assert [row["id"] for row in first] == [row["id"] for row in second]
        assert [row["text"] for row in first] != [row["text"] for row in second]


def test_results_are_what_is_in_the_predictions(evaluated, checkpoint):
    folder, results = evaluated
    assert json.loads((folder / "results.json").read_text()) == results
    assert results["split"] == "test"
    assert results["decoding"] == dataclasses.asdict(SAMPLED)
    assert (results["max_examples"], results["unfinished"]) == (6, [])
    assert results["versions"] == {"cot_flax": cot_flax.__version__, "jax": jax.__version__}
    assert datetime.fromisoformat(results["date"]).utcoffset() == timedelta(0)
    assert results["checkpoint"] == f"{checkpoint}/checkpoints/7"
    assert results["cards"][COT] == CARD.to_json()
    assert list(results["cards"]) == list(results["tasks"]) == list(TASKS)
    for task, found in results["tasks"].items():
        rows = rows_of(evaluated, task)
        assert found["count"] == len(rows) == 12
        assert found["accuracy"] == sum(row["right"] for row in rows) / 12
        nothing = sum(row["extracted"] is None for row in rows)
        assert found["parse_failure_rate"] == nothing / 12


def test_error_classes_and_the_calculator_stand_beside_accuracy(evaluated):
    for task, found in evaluated[1]["tasks"].items():
        rows = rows_of(evaluated, task)
        assert found["error_classes"] == {k: t.count for k, t in tally(rows).items()}
        assert sum(found["error_classes"].values()) == 12
        assert found["accuracy_with_calculator"] == sum(calculated(row).right for row in rows) / 12
        assert any(row["cut_off"] for row in rows)  # after 5 tokens


def test_a_calculator_of_decoding_is_a_macro_of_evaluation(student, monkeypatch):
    places = ["CHECKPOINT_PATH='run'", "EVAL_OUTPUT_DIR='out'", f"MIXTURE_OR_TASK_NAME='{COT}'"]
    configuration.parse(["runs/evaluate.gin"], [*places, "CALCULATOR='decoding'"])
    decoding = configuration.call("evaluation.Decoding")
    assert decoding.calculator == "decoding" and Decoding().calculator is None
    asked, generate = [], generator.Generator.generate

    def watched(*arguments, **settings):
        asked.append(settings["calculator"])
        return generate(*arguments, **settings)

    monkeypatch.setattr(generator.Generator, "generate", watched)
    for chosen in (decoding, Decoding()):
        evaluate.predict(*student, COT, "test", dataclasses.replace(chosen, max_tokens=4), 2)
    assert asked == [True, False]


def test_steps_add_up(evaluated):
    found = evaluated[1]["tasks"][COT]
    parts = found["by_steps"].values()
    assert set(found["by_steps"]) == {"1", "2", "3", "4"}
    assert sum(part["count"] for part in parts) == found["count"]
    for name in ("accuracy", "parse_failure_rate"):
        total = sum(part[name] * part["count"] for part in parts)
        assert total / found["count"] == pytest.approx(found[name])
    assert evaluated[1]["tasks"]["word_sorting_zero_shot_answer"]["by_steps"] == {}


def test_samples_depend_on_seed_and_place_alone(student, evaluated):
    """Not on the batch: here all prompts at once, and fewer of them."""
    expected = {(row["id"], row["sample"]): row["text"] for row in rows_of(evaluated, COT)}
    other = dataclasses.replace(SAMPLED, batch_size=3)
    for row in evaluate.predict(*student, COT, "test", other, 3):
        assert row["text"] == expected[row["id"], row["sample"]]
    reseeded = dataclasses.replace(SAMPLED, seed=4)
    texts = [row["text"] for row in evaluate.predict(*student, COT, "test", reseeded, 6)]
    assert texts != list(expected.values())


@pytest.fixture(scope="module")
def terse(student):
    """The student with a head that ends answers early, so that the rules of search differ."""
    module, params = student
    kernel = np.array(params["decoder"]["logits_dense"]["kernel"]) * 3
    kernel[:, 1] *= 3
    return module, params | {"decoder": params["decoder"] | {"logits_dense": {"kernel": kernel}}}


def test_with_beams_the_best_of_each_prompt_is_scored(terse):
    prompts = np.zeros((4, 128), np.int32)
    for row, e in zip(prompts, evaluate.read_examples(COT, "test", 4), strict=True):
        row[: len(e["inputs"])] = e["inputs"]
    texts = {}
    for rule, penalty in (("huggingface", None), ("t5x", 2.0)):
        settings = {"max_tokens": 8, "beams": 3, "length_penalty": penalty}
        best = np.asarray(beam_search(*terse, prompts, rule=rule, **settings)[0])[:, 0].tolist()
        ids = [row[: row.index(1)] if 1 in row else row for row in best]
        texts[rule] = [VOCABULARY.decode(row) for row in ids]
        decoding = Decoding(beam_rule=rule, batch_size=4, **settings)
        found = evaluate.predict(*terse, COT, "test", decoding, 4)
        assert [row["text"] for row in found] == texts[rule]
        assert {row["sample"] for row in found} == {0}
    assert texts["huggingface"] != texts["t5x"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beams": 4, "samples": 2}, "4 beams, 2 samples, temperature 0.0; .*NUM_BEAMS=1"),
        ({"beams": 4, "temperature": 0.7}, "4 beams, 1 samples, temperature 0.7; "),
        ({"beams": 0}, "0 beams; expected 1 or more"),
        ({"beam_rule": "t5"}, "beam rule 't5'; expected one of"),
        ({"calculator": "after"}, "calculator 'after'; expected None or \"decoding\""),
        ({"calculator": "decoding", "beams": 2}, "2 beams with a calculator; .*CALCULATOR=None"),
        ({"temperature": -1.0}, "temperature -1.0; expected 0 or more"),
        ({"top_k": -1}, "top_k -1; expected 1 or more"),
        ({"top_p": 0.0}, "top_p 0.0; expected above 0"),
        ({"top_p": 1.5}, "top_p 1.5; expected above 0"),
    ],
)
def test_settings_that_cannot_be_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        Decoding(**settings)


def test_beams_are_macros_of_evaluation():
    places = ["CHECKPOINT_PATH='run'", "EVAL_OUTPUT_DIR='out'", f"MIXTURE_OR_TASK_NAME='{COT}'"]
    beams = ["NUM_BEAMS=4", "LENGTH_PENALTY=0.6", "BEAM_RULE='t5x'"]
    configuration.parse(["runs/evaluate.gin"], places + beams)
    found = configuration.call("evaluation.Decoding")
    assert (found.beams, found.length_penalty, found.beam_rule) == (4, 0.6, "t5x")


def test_what_is_drawn_is_set_by_macros():
    places = ["CHECKPOINT_PATH='run'", "EVAL_OUTPUT_DIR='out'", f"MIXTURE_OR_TASK_NAME='{COT}'"]
    draws = ["NUM_SAMPLES=8", "TEMPERATURE=0.7", "TOP_K=40", "TOP_P=0.95"]
    configuration.parse(["runs/evaluate.gin"], places + draws)
    found = configuration.call("evaluation.Decoding")
    assert (found.samples, found.temperature, found.top_k, found.top_p) == (8, 0.7, 40, 0.95)


def test_texts_are_those_of_the_plain_decoder(student):
    """A draw's key is made of the seed and the prompt's place."""
    examples = evaluate.read_examples(COT, "test", 3)
    module, params = student
    batch = np.zeros((3, 192), np.int32)
    for row, e in zip(batch, examples, strict=True):
        row[: len(e["inputs"])] = e["inputs"]
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(3), jnp.arange(3))
    settings = {"max_tokens": 5, "samples": 2, "temperature": 1.0, "top_k": 20, "top_p": 0.9}
    expected = np.asarray(decode(module, params, batch, rng=keys, **settings))
    decoding = Decoding(seed=3, batch_size=2, **settings)
    for row in evaluate.predict(module, params, COT, "test", decoding, 3):
        place = [e["id"].decode() for e in examples].index(row["id"])
        ids = expected[place, row["sample"]].tolist()
        assert row["text"] == VOCABULARY.decode(ids[: ids.index(1)] if 1 in ids else ids)


class FakeDecoding:
    """Answers every prompt from a table, in the shape of `decode_all`, and keeps the prompts."""

    def __init__(self, answers):
        self._answers = answers
        self.calls = []

    def __call__(
        self,
        module,
        params,
        prompts,
        keys,
        *,
        slots,
        max_tokens,
        samples,
        sampling,
        dictation,
        ended,
    ):
        self.calls.append(prompts)
        for place in reversed(range(len(prompts))):
            output = np.zeros((samples, max_tokens), np.int32)
            ids = self._answers[tuple(prompts[place])]
            output[:, : len(ids)] = ids
            ended(place, output)


def fake(monkeypatch, task, choose, split="test"):
    """Lets the student answer `choose(place, example)`, ids, to each example of a task."""
    examples = evaluate.read_examples(task, split, None)
    answers = {tuple(e["inputs"].tolist()): choose(i, e) for i, e in enumerate(examples)}
    decoding = FakeDecoding(answers)
    monkeypatch.setattr(generator, "decode_all", decoding)
    return examples, decoding


def test_predictions_keep_the_order_of_the_data(monkeypatch, student):
    def echo(place, e):
        return [*e["inputs"][:12].tolist(), 1, 9, 9]  # what follows EOS is no text

    examples, _ = fake(monkeypatch, COT, echo)
    rows = evaluate.predict(*student, COT, "test", Decoding(max_tokens=20, batch_size=4))
    assert [row["id"] for row in rows] == [e["id"].decode() for e in examples]
    for row, e in zip(rows, examples, strict=True):
        assert row["text"] == VOCABULARY.decode(e["inputs"][:12].tolist())


def gold_at_even_places(place, e):
    return e["targets"].tolist() if place % 2 == 0 else [1]


def test_accuracies_are_those_of_the_texts(monkeypatch, student):
    examples, _ = fake(monkeypatch, COT, gold_at_even_places)
    found = summarize(evaluate.predict(*student, COT, "test", Decoding(max_tokens=90)))
    assert (found["accuracy"], found["parse_failure_rate"], found["count"]) == (0.5, 0.5, STORIES)
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson_interval(5, 10)
    # Steps are 1 2 3 4 1 2 3 4 1 2, so those at even places are odd.
    assert [int(e["steps"]) for e in examples] == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2]
    accuracies = {steps: part["accuracy"] for steps, part in found["by_steps"].items()}
    assert accuracies == {"1": 1.0, "2": 0.0, "3": 1.0, "4": 0.0}


def test_the_answer_mode_is_obeyed(monkeypatch, student):
    fake(monkeypatch, COT, lambda place, e: VOCABULARY.encode(e["answer"].decode()))
    for mode, accuracy in (("flexible", 1.0), ("strict", 0.0)):
        decoding = Decoding(max_tokens=9, mode=mode)
        assert summarize(evaluate.predict(*student, COT, "test", decoding))["accuracy"] == accuracy


def test_the_accuracy_evaluator_takes_the_first_of_the_validation_split(monkeypatch, student):
    _, decoding = fake(monkeypatch, ANSWER, gold_at_even_places, "validation")
    evaluator = AccuracyEvaluator(ANSWER, max_examples=5, decoding=Decoding(max_tokens=9))
    assert evaluator(*student) == {
        f"{ANSWER}/accuracy": 3 / 5,
        f"{ANSWER}/parse_failure_rate": 2 / 5,
    }
    assert [len(prompts) for prompts in decoding.calls] == [5]


def test_mixtures_are_their_tasks_and_no_task_comes_twice():
    names = mixtures.task_names(("stories_cot_mix", COT, "word_sorting_zero_shot_answer"))
    assert names == [*dict.fromkeys(names)]
    assert set(names) == {*(f"stories_{f}" for f in FORMATS), "word_sorting_zero_shot_answer"}


def evaluate_checkpoint(checkpoint, tmp_path, **settings):
    arguments = {"mixture_or_task_name": COT, "decoding": SAMPLED, "max_examples": 2} | settings
    arguments["mesh"] = MeshConfig(data=1)
    return evaluate.evaluate(
        checkpoint_path=checkpoint, output_dir=str(tmp_path / "out"), **arguments
    )


def test_a_checkpoint_of_another_vocabulary_is_refused(student, tmp_path):
    other = save(tmp_path / "other", student[1], "feedfacefeedface")
    with pytest.raises(UserError, match=f"vocabulary feedfacefeedface.*of {COT}"):
        evaluate_checkpoint(other, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "dev"}, f"split 'dev' of {COT}; expected one of"),
        ({"mixture_or_task_name": "stories_zero_shot_cat"}, "such as stories_zero_shot_cot"),
        ({"mixture_or_task_name": (COT, "sums_zero_shot_cot")}, "'sums_zero_shot_cot'"),
    ],
)
def test_what_cannot_be_evaluated_is_named(checkpoint, tmp_path, monkeypatch, settings, message):
    monkeypatch.setattr(generator, "decode_all", None)  # found out before anything is decoded
    with pytest.raises(UserError, match=message):
        evaluate_checkpoint(checkpoint, tmp_path, **settings)


def test_an_unknown_answer_mode_is_named():
    with pytest.raises(UserError, match="extraction mode 'loose'; expected one of"):
        Decoding(mode="loose")


def test_without_a_limit_of_tokens_the_card_has_it(student, monkeypatch):
    limited = dataclasses.replace(CARD, max_tokens=3)
    monkeypatch.setattr(evaluate, "cot_task", lambda task: limited)
    texts = {}
    for length in (None, 3):
        rows = evaluate.predict(*student, COT, "test", Decoding(max_tokens=length), 2)
        texts[length] = [row["text"] for row in rows]
    assert texts[None] == texts[3]
    monkeypatch.setattr(evaluate, "cot_task", lambda task: CARD)
    with pytest.raises(UserError, match=f"no max_tokens.*{COT}.*MAX_DECODE_LENGTH"):
        evaluate.predict(*student, COT, "test", Decoding(max_tokens=None), 2)


@pytest.fixture
def broken_golds(monkeypatch):
    """Four golds of the first six that are no numbers; the ids of all."""
    read = evaluate.read_examples

    def with_broken_golds(task, split, max_examples):
        examples = read(task, split, max_examples)
        for place in (1, 2, 4, 5):
            examples[place]["answer"] = b"not determined"
        return examples

    for module in (evaluate, evaluators):
        monkeypatch.setattr(module, "read_examples", with_broken_golds)
    monkeypatch.setattr(generator, "decode_all", None)
    return lambda split: [example["id"].decode() for example in read(COT, split, 6)]


def test_golds_are_read_before_anything_is_decoded(checkpoint, tmp_path, broken_golds):
    ids = broken_golds("test")
    named = (
        f"'not determined' of {ids[1]} in {COT} \\(kind number\\); .*{ids[2]}.*{ids[4]} in [^;]*"
    )
    # Of two formats of a question one is enough.
    with pytest.raises(UserError, match=f"got 4 gold answers .*: {named}; ...; expected"):
        evaluate_checkpoint(
            checkpoint, tmp_path, max_examples=6, mixture_or_task_name=(COT, ANSWER)
        )


def test_golds_that_are_watched_in_training_are_read_before_it_begins(broken_golds):
    with pytest.raises(UserError, match=f"got 4 gold answers .*{broken_golds('validation')[1]}"):
        AccuracyEvaluator(COT, max_examples=6)


@pytest.mark.parametrize("number", [0, -1])
def test_no_examples_are_refused(checkpoint, tmp_path, number):
    with pytest.raises(UserError, match=f"max_examples {number}; .*MAX_EXAMPLES"):
        evaluate_checkpoint(checkpoint, tmp_path, max_examples=number)


class Killed(BaseException):
    """What ends a process."""


@pytest.fixture
def dying(monkeypatch):
    """Decoding that dies in the second task, when three of its questions have ended."""
    decode_all, tasks, ends = generator.decode_all, [], []

    def decode(*arguments, ended, **settings):
        tasks.append(len(arguments[2]))

        def until_killed(place, ids_NT):
            if len(tasks) == 2 and len(ends) == 3:
                raise Killed
            ends.extend([place] if len(tasks) == 2 else [])
            ended(place, ids_NT)

        return decode_all(*arguments, ended=until_killed, **settings)

    monkeypatch.setattr(generator, "decode_all", decode)
    return tasks


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_kill_loses_nothing_that_was_decoded(checkpoint, tmp_path, dying, evaluated, capsys):
    whole, results = evaluated
    settings = {"mixture_or_task_name": TASKS, "max_examples": 6}
    with pytest.raises(Killed):
        evaluate_checkpoint(checkpoint, tmp_path, **settings)
    folder = tmp_path / "out"
    left = json.loads((folder / "results.json").read_text())
    assert left["tasks"] == {COT: results["tasks"][COT]}
    assert left["unfinished"] == [TASKS[1]]
    assert lines_of(folder / "predictions.jsonl") == rows_of(evaluated, COT)
    unfinished = folder / "predictions.unfinished.jsonl"
    rows = lines_of(unfinished)
    assert len({row["id"] for row in rows}) == 3
    assert all(row in rows_of(evaluated, TASKS[1]) for row in rows)
    assert f"6 predictions are in {unfinished}" in capsys.readouterr().err

    # The same again asks the three questions that are left; another evaluation does not take its
    # place, and a line that the kill broke off is asked again.
    with unfinished.open("a") as file:
        file.write(json.dumps(rows[0])[:40])
    with pytest.raises(
        UserError, match=r"18 predictions of 2 tasks, not of this .*\(others: max_ex"
    ):
        evaluate_checkpoint(checkpoint, tmp_path, **settings | {"max_examples": 5})
    again = evaluate_checkpoint(checkpoint, tmp_path, **settings)
    assert dying == [6, 6, 3]
    assert f"1 of 2 tasks are in {folder}" in capsys.readouterr().err
    assert again | {"date": ""} == results | {"date": ""}
    assert lines_of(folder / "predictions.jsonl") == lines_of(whole / "predictions.jsonl")
    assert not unfinished.exists()


def test_results_are_replaced_only_when_asked(checkpoint, tmp_path):
    first = evaluate_checkpoint(checkpoint, tmp_path)
    path = tmp_path / "out" / "results.json"
    message = rf"{path} with 4 predictions of 1 tasks.*\(others: max_examples, seed\).*--overwrite"
    decoding = dataclasses.replace(SAMPLED, seed=9)
    with pytest.raises(UserError, match=message):
        evaluate_checkpoint(checkpoint, tmp_path, max_examples=1, decoding=decoding)
    assert json.loads(path.read_text()) == first
    other = evaluate_checkpoint(checkpoint, tmp_path, max_examples=1, overwrite=True)
    assert json.loads(path.read_text()) == other
    assert len(lines_of(tmp_path / "out" / "predictions.jsonl")) == 2


def test_the_same_again_decodes_nothing_unless_the_checkpoint_is_new(
    student, tmp_path, monkeypatch
):
    place = save(tmp_path / "run", student[1], fingerprint(VOCABULARY))
    first = evaluate_checkpoint(place, tmp_path)
    path = tmp_path / "out" / "results.json"
    written = path.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(generator, "decode_all", None)
        assert evaluate_checkpoint(place, tmp_path) == first
    assert path.stat().st_mtime_ns == written
    for file in (tmp_path / "run" / "checkpoints" / "7").iterdir():
        os.utime(file, (2**31, 2**31))
    os.utime(file.parent, (2**31, 2**31))
    with pytest.raises(UserError, match=r"\(others: checkpoint_date\)"):
        evaluate_checkpoint(place, tmp_path)


def test_without_a_terminal_lines_say_how_far_it_is(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(outputs, "_SILENCE", 0.0)
    found = evaluate_checkpoint(checkpoint, tmp_path, mixture_or_task_name=TASKS)
    lines = capsys.readouterr().err.splitlines()
    assert f"{COT} (1 of 2): 0 of 2 questions" in lines
    assert f"{TASKS[1]} (2 of 2): 1 of 2 questions, 0.0% right" in lines
    share = found["tasks"][TASKS[1]]["accuracy"]
    assert lines[-1] == f"{TASKS[1]} (2 of 2): 2 of 2 questions, {share:.1%} right"


def test_on_a_terminal_a_bar_counts_the_questions():
    console = Console(force_terminal=True, width=120, file=io.StringIO())
    with outputs.Reporter({COT: 2}, quiet=False, console=console) as reporter:
        reporter.begin_task(COT)
        reporter.add([{"right": True}, {"right": False}])
        reporter.add([{"right": True}, {"right": True}])
    shown = console.file.getvalue()
    assert "2/2" in shown and "75.0% right" in shown
    assert "questions" not in shown


def test_prompts_with_unknown_pieces_are_counted():
    unknown = VOCABULARY.unk_id
    examples = [{"inputs": np.array(ids)} for ids in ([5, 6], [5, unknown], [unknown] * 3)]
    assert evaluate.count_unknown(COT, examples) == {"prompts_with_unknown": 2}
    assert evaluate.count_unknown(COT, examples[:1]) == {}


def test_numbers_have_no_labels(evaluated):
    assert "labels" not in evaluated[1]["tasks"][COT]
    assert evaluated[1]["tasks"][TASKS[1]]["majority"] == 1 / 6


def test_a_folder_without_checkpoints_is_named(tmp_path):
    with pytest.raises(UserError, match=f"no checkpoint at {tmp_path}"):
        evaluate_checkpoint(str(tmp_path), tmp_path)
