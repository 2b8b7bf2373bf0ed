"""A scenario's tasks: the settings of its folder say what counts as an answer."""

import json

import gin
import pytest

from cot_flax.chains.filtering import Filters
from cot_flax.chains.preparation import Preparation
from cot_flax.data.batches import find_task
from cot_flax.data.registration import cot_task
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.store import layout
from cot_flax.store.make import answer_kind, template
from cot_flax.store.prepare import prepare
from cot_flax.tasks import scenario
from cot_flax.tasks.stories import VOCABULARY
from cot_flax.text import scoring
from cot_flax.text.tokenizers import SentencePieceTokenizer

TASK = "scenario_zero_shot_cot"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "bills"
    folder.mkdir()
    (folder / "instruction.md").write_text("Work out the amount that is due.")
    exemplars = [
        {"input": f"{i} at 10.", "reasoning": f"{i} * 10 = {i}0.", "answer": f"{i}0.00"}
        for i in range(2, 6)
    ]
    write(folder / "exemplars.jsonl", *exemplars)
    write(folder / "inputs.jsonl", {"input": "7 at 10.", "answer": "70"})
    write(folder / "test.jsonl", {"input": "1,008 at 10.", "answer": "10,080"})
    (folder / "settings.json").write_text('{"answer_kind": "number"}')
    gin.bind_parameter("cot_flax.tasks.scenario.data.directory", str(folder))
    vocabulary = "cot_flax.data.features.t5_vocabulary_file.path"
    gin.bind_parameter(vocabulary, str(VOCABULARY_PATH))
    return folder


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_settings_rule_the_task(folder):
    assert cot_task(TASK).answer_kind == "number"
    assert answer_kind("scenario_teacher_zero_shot_cot") == "number"
    (metric,) = find_task(TASK).metric_fns
    found = metric(["10,080", "40.00"], ["The answer is $10080.", "The answer is 40"])
    assert found == {"accuracy": 1.0, "parse_failures": 0.0}
    (folder / "settings.json").unlink()
    assert cot_task(TASK).answer_kind == "text"


def test_right_chains_of_numbers_are_kept(folder, tmp_path):
    texts = ["4 * 10 = 40. The answer is 40", "The answer is $40.00.", "The answer is 41"]
    write(
        tmp_path / "own.jsonl",
        *({"question": f"{i}?", "text": text, "answer": "40.00"} for i, text in enumerate(texts)),
    )
    settings = Preparation(Filters(answer_kind=answer_kind(TASK)))
    kept = prepare(
        [str(tmp_path / "own.jsonl")],
        str(tmp_path / "store"),
        vocabulary=VOCABULARY,
        settings=settings,
        workers=1,
    )
    assert (kept.kept, dict(kept.fates)) == (2, {"kept": 2, "wrong_answer": 1})


def test_the_settings_word_the_task(folder, tmp_path):
    settings = {"answer_kind": "number", "cue": "Rechnen wir", "closing": "Zu zahlen sind"}
    (folder / "settings.json").write_text(json.dumps(settings | {"markers": ["Summe"]}))
    card = cot_task(TASK)
    assert card.answer_kind == "number behind summe, zu zahlen sind"
    assert (template(TASK).closing, card.cue) == ("Zu zahlen sind {answer}", "Rechnen wir")
    (example,) = find_task(TASK).get_dataset(split="test").as_numpy_iterator()
    assert example["inputs_pretokenized"].decode() == "Q: 1,008 at 10.\nRechnen wir"
    (metric,) = find_task(TASK).metric_fns
    texts = ["Zu zahlen sind 10080 von 5", "Summe: 40, nicht 30"]
    assert metric(["10,080", "40.00"], texts)["accuracy"] == 1.0
    texts = ["4 * 10 = 40.\nSumme: 40 von 90", "Zu zahlen sind 40.", "Zu zahlen sind 41."]
    rows = ({"question": f"{i}?", "text": t, "answer": "40"} for i, t in enumerate(texts))
    write(tmp_path / "own.jsonl", *rows)
    settings = Preparation(Filters(answer_kind=answer_kind(TASK)), template=template(TASK))
    store = str(tmp_path / "store")
    kept = prepare(
        [str(tmp_path / "own.jsonl")], store, vocabulary=VOCABULARY, settings=settings, workers=1
    )
    assert dict(kept.fates) == {"kept": 2, "wrong_answer": 1}
    targets = [
        SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0).decode(record["targets"].tolist())
        for record in layout.dataset(store).as_numpy_iterator()
    ]
    assert [target.count("sind 40") for target in targets] == [1, 1]


def test_bytes_lack_no_script(folder):
    (folder / "settings.json").write_text('{"answer_kind": "number", "language": "zh"}')
    write(folder / "test.jsonl", {"input": "5盒鸡蛋有多少个？", "answer": "50"})
    task = find_task("scenario_bytes_zero_shot_cot")
    (example,) = task.get_dataset(split="test").as_numpy_iterator()
    assert example["targets_pretokenized"].decode() == "答案是50"
    vocabulary = task.output_features["inputs"].vocabulary
    assert vocabulary.decode(example["inputs"].tolist()).startswith("Q: 5盒鸡蛋有多少个？\n让我们")
    assert vocabulary.unk_id not in example["inputs"]
    assert answer_kind("scenario_bytes_teacher_few_shot_cot") == "number"


def test_labels_rule_the_task(folder):
    (folder / "settings.json").write_text('{"labels": ["20.00", "30.00", "40.00", "50.00"]}')
    kind = cot_task(TASK).answer_kind
    assert kind == "one of 20.00, 30.00, 40.00, 50.00"
    texts = ["The answer is 40.00", "The answer is 60"]
    scored = scoring.score(texts, ["40.00"] * 2, kind=kind, mode="strict")
    assert [score.extracted for score in scored] == ["40.00", None]


def test_without_a_folder_the_remedy_is_named():
    with pytest.raises(UserError, match=r"no scenario; expected its folder; pass --gin\.SCENARIO="):
        cot_task(TASK)


def test_the_test_split_may_be_a_table(folder):
    (folder / "test.jsonl").unlink()
    (folder / "test.csv").write_text('input,answer\n"1,008 at 10.","10,080"\n')
    (record,) = scenario.SOURCE.get_dataset("test", shuffle=False).as_numpy_iterator()
    assert (record["question"], record["answer"]) == (b"1,008 at 10.", b"10,080")


def test_the_chains_of_a_store_have_the_tasks_template(folder, tmp_path):
    gin.bind_parameter("cot_flax.data.registration.prompting.template", "ho2022")
    texts = ["4 * 10 = 40. The answer is 40", "4 * 10 = 40. --> 40", "4 * 10 = 41. --> 41"]
    rows = ({"question": f"{i}?", "text": t, "answer": "40"} for i, t in enumerate(texts))
    write(tmp_path / "own.jsonl", *rows)
    settings = Preparation(Filters(answer_kind=answer_kind(TASK)), template=template(TASK))
    store = str(tmp_path / "store")
    kept = prepare(
        [str(tmp_path / "own.jsonl")], store, vocabulary=VOCABULARY, settings=settings, workers=1
    )
    assert dict(kept.fates) == {"kept": 2, "wrong_answer": 1}
    tokenizer = SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0)
    records = layout.dataset(store).as_numpy_iterator()
    assert {tokenizer.decode(record["targets"].tolist()) for record in records} == {
        "4 * 10 = 40. The answer is 40 --> 40",
        "4 * 10 = 40. --> 40",
    }
