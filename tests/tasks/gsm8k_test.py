import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import gin
import pytest
import tensorflow as tf

from cot_flax import files
from cot_flax.chains.preparation import Preparation
from cot_flax.chains.samples import Sample, write_samples
from cot_flax.data.batches import TaskBatches
from cot_flax.data.mixtures import find_task
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.store.prepare import prepare
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.tasks import gsm8k
from cot_flax.text.answers import extract_answer
from cot_flax.text.calculator import rewrite
from cot_flax.text.prompts import normalize_question

DIRECTORY = "cot_flax.tasks.gsm8k.data.directory"
SHOTS = "cot_flax.data.registration.prompting.shots"


@pytest.fixture
def bound(shared_data):
    """The folder of the data, bound with T5's vocabulary."""
    folder = shared_data / "gsm8k"
    gin.bind_parameter(DIRECTORY, str(folder))
    spiece = str(shared_data / "t5_vocab" / "spiece.model")
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", spiece)
    return folder


def lines(folder, file):
    with open(folder / f"{file}.jsonl") as content:
        return [json.loads(line) for line in content]


def records(split):
    dataset = gsm8k.SOURCE.get_dataset(split, shuffle=False)
    return [
        {k: v.decode() if isinstance(v, bytes) else int(v) for k, v in record.items()}
        for record in dataset.as_numpy_iterator()
    ]


def read(task, split, n):
    dataset = find_task(task).get_dataset(sequence_length=None, split=split, shuffle=False)
    return list(itertools.islice(dataset.as_numpy_iterator(), n))


def test_the_last_500_training_questions_are_the_validation_split(bound):
    whole = [line["question"] for line in lines(bound, "train")]
    assert len(whole) == 7473
    assert [record["question"] for record in records("train")] == whole[:-500]
    assert [record["question"] for record in records("validation")] == whole[-500:]
    assert not set(whole[:-500]) & set(whole[-500:])
    assert [r["question"] for r in records("test")] == [
        line["question"] for line in lines(bound, "test")
    ]


def test_fu2023s_validation_questions_are_not_trained_on(bound):
    gin.bind_parameter("cot_flax.tasks.gsm8k.validation.questions", "fu2023")
    whole = [line["question"] for line in lines(bound, "train")]
    validation = records("validation")
    assert [r["question"] for r in validation] == [whole[i] for i in gsm8k.FU2023_DEV]
    assert (validation[0]["id"], validation[-1]["id"]) == (
        "gsm8k-validation-9", "gsm8k-validation-7455"
    )  # fmt: skip
    train = records("train")
    assert len(train) == 7273
    assert all(r["question"] == whole[int(r["id"].rpartition("-")[2])] for r in train)
    assert not {r["question"] for r in train} & {r["question"] for r in validation}
    assert len(records("test")) == 1319


def test_what_fu2023s_rules_misread_of_gsm8k(bound):
    """14 golds with a comma and 2 with a sign; 48 questions lose a `: `."""
    golds = [record["answer"] for record in records("test")]
    misread = [g for g in golds if extract_answer(g, kind="number", mode="fu2023") != g]
    assert len([gold for gold in misread if "," in gold]) == 14
    assert len([gold for gold in misread if gold.startswith("-")]) == 2
    assert len(misread) == 16
    assert len([line for line in lines(bound, "train") if ": " in line["question"]]) == 48


def test_answers_steps_and_rationales_are_read_out_of_the_solutions(bound):
    found = records("test")
    assert len(found) == 1319
    for record, line in zip(found, lines(bound, "test"), strict=True):
        solution, answer = line["answer"].split("\n#### ")
        marks = re.findall(r"<<[^>]*>>", solution)
        assert (record["answer"], record["steps"]) == (answer, len(marks))
        for mark in marks:
            solution = solution.replace(mark, "")
        assert record["rationale"] == solution.strip()
        assert int(record["answer"].replace(",", "")) is not None
    assert found[0]["answer"] == "18"  # Janet's ducks
    assert found[0]["steps"] == 2


def test_ids_are_unique_over_the_splits(bound):
    ids = [r["id"] for split in ("train", "validation", "test") for r in records(split)]
    assert len(set(ids)) == len(ids) == 7473 + 1319


def test_no_question_is_in_two_splits_however_it_is_written(bound):
    train, *held_out = (
        {normalize_question(record["question"]) for record in records(split)}
        for split in ("train", "validation", "test")
    )
    assert not train & held_out[0]
    assert not train & held_out[1]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_few_shot_prompts_pass_the_leak_check_and_show_training_items(bound, split):
    gin.bind_parameter(SHOTS, 2)
    training = {line["question"].strip() for line in lines(bound, "train")[:-500]}
    for e in read("gsm8k_few_shot_answer", split, 20):
        prompt = e["inputs_pretokenized"].decode()
        *shown, asked = [part.split("\nA:")[0] for part in re.split(r"(?:^| ### )Q: ", prompt)[1:]]
        assert len(shown) == 2
        assert {question.strip() for question in shown} <= training
        assert asked == e["question"].decode()


def test_gold_targets_are_right_by_the_calculator(bound):
    examples = read("gsm8k_zero_shot_cot", "validation", 100)
    texts = [e["targets_pretokenized"].decode() for e in examples]
    for e, text in zip(examples, texts, strict=True):
        assert text.endswith(f"The answer is {e['answer'].decode()}")
    unchanged = sum(rewrite(text) == text for text in texts)
    assert unchanged >= 90  # the data set's own rounding aside


def write_small(folder, train, test):
    for file, items in (("train", train), ("test", test)):
        rows = [json.dumps({"question": q, "answer": "2+2=<<2+2=4>>4\n#### 4"}) for q in items]
        (folder / f"{file}.jsonl").write_text("\n".join(rows) + "\n")
    gin.bind_parameter(DIRECTORY, str(folder))


def test_a_test_question_in_the_training_data_is_a_leak(tmp_path, shared_data):
    spiece = str(shared_data / "t5_vocab" / "spiece.model")
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", spiece)
    gin.bind_parameter(SHOTS, 1)
    train = [f"What is {i} plus {i}?" for i in range(510)]
    write_small(tmp_path, train, ["What is one plus one?"])
    assert len(read("gsm8k_few_shot_cot", "test", 5)) == 1
    write_small(tmp_path, train, ["what is 7  plus 7"])
    gin.bind_parameter(SHOTS, 2)  # another configuration, so the pool is made again
    with pytest.raises(UserError, match="1 held-out question"):
        read("gsm8k_few_shot_cot", "test", 5)


def test_fewer_lines_than_the_validation_split_are_an_error(tmp_path):
    write_small(tmp_path, ["What is 2 plus 2?"] * 400, ["What is 3 plus 1?"])
    with pytest.raises(UserError, match="no records in split 'train'"):
        records("train")


def test_validation_questions_that_are_not_there(tmp_path):
    write_small(tmp_path, ["What is 2 plus 2?"] * 600, ["What is 3 plus 1?"])
    gin.bind_parameter("cot_flax.tasks.gsm8k.validation.questions", "fu2023")
    with pytest.raises(UserError, match=r"600 training questions.*7,473"):
        records("train")
    gin.bind_parameter("cot_flax.tasks.gsm8k.validation.questions", "fu")
    with pytest.raises(UserError, match="'fu'; expected last_500 or fu2023"):
        records("validation")


def test_a_line_without_a_gold_answer_is_not_given_one(tmp_path):
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "Two?", "answer": "It is 2."}))
    gin.bind_parameter(DIRECTORY, str(tmp_path))
    with pytest.raises(UserError, match=r"gsm8k-test-0 without an answer.*####"):
        records("test")


def test_a_directory_without_the_files_is_named(tmp_path):
    gin.bind_parameter(DIRECTORY, str(tmp_path))
    with pytest.raises(UserError, match=r"test\.jsonl.*No such file"):
        records("test")


@pytest.fixture
def tfds(monkeypatch):
    import tensorflow_datasets

    gsm8k._from_tfds.cache_clear()
    yield lambda builder: monkeypatch.setattr(tensorflow_datasets, "builder", builder)
    gsm8k._from_tfds.cache_clear()


def test_without_tfds_the_remedy_is_a_directory(tfds):
    def builder(name):
        raise ConnectionError("no network")

    tfds(builder)
    with pytest.raises(
        UserError, match=r"ConnectionError: no network\); expected a network.*GSM8K_DIRE"
    ):
        records("test")


def test_a_package_that_tfds_lacks_is_named(tfds):
    """Not the network, which was never asked."""

    def builder(name):
        raise ModuleNotFoundError("No module named 'importlib_resources'")

    tfds(builder)
    with pytest.raises(
        UserError, match=r"'importlib_resources'\); expected the packages that TFDS"
    ):
        records("test")


def test_what_is_not_prepared_is_asked_for_once(tfds, tmp_path, monkeypatch):
    """TFDS itself asks for four minutes."""
    files._silence.cache_clear()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    tfds(lambda name: SimpleNamespace(data_path=tmp_path / name))
    with pytest.raises(UserError, match=r"no answer from https://raw.*GSM8K_DIRECTORY"):
        records("test")


def test_tfds_gives_the_same_records(tfds, tmp_path):
    columns = {"question": ["Two?"], "answer": ["1+1=<<1+1=2>>2\n#### 2"], "other": ["x"]}
    splits = {"test": tf.data.Dataset.from_tensor_slices(columns)}
    builder = SimpleNamespace(
        data_path=tmp_path,
        download_and_prepare=lambda: None,
        as_dataset=lambda split: splits[split],
    )
    tfds({"gsm8k": builder}.get)
    (record,) = records("test")
    assert record == {
        "id": "gsm8k-test-0",
        "question": "Two?",
        "rationale": "1+1=2",
        "answer": "2",
        "steps": 1,
    }


def chain(line, number):
    gold = line["answer"].rpartition("#### ")[2]
    return Sample(
        id=f"gsm8k-train-{number}",
        dataset="gsm8k",
        split="train",
        question=line["question"],
        gold_answer=gold,
        format="few_shot_cot",
        prompt_hash="",
        teacher={"model": "nobody", "params": {}},
        sample=0,
        text=f"Easy. The answer is {gold}.",
        logprobs=None,
        finish_reason="stop",
    )


@pytest.fixture
def bind_store(tmp_path):
    """Makes a store of samples and binds it."""

    def bind(samples):
        write_samples(tmp_path / "samples.jsonl", samples)
        out = str(tmp_path / "store")
        inputs = [str(tmp_path / "samples.jsonl")]
        tally = prepare(inputs, out, vocabulary=gsm8k.VOCABULARY, settings=Preparation(), workers=1)
        assert tally.kept == len(samples)
        gin.bind_parameter("cot_flax.tasks.gsm8k.teacher_store.directory", out)

    return bind


def test_teacher_chains_of_held_out_questions_are_not_trained_on(bound, bind_store):
    whole = lines(bound, "train")
    wanted, held_out = chain(whole[0], 0), chain(whole[-1], 7472)
    again = dataclasses.replace(held_out, sample=1, text=f"So. {held_out.text}")
    tested = [chain(line, 10_000 + i) for i, line in enumerate(lines(bound, "test")[:3])]
    bind_store([held_out, again, *tested, wanted])
    (e,) = read("gsm8k_teacher_zero_shot_cot", "train", 5)
    assert e["question"].decode() == wanted.question
    assert e["teacher_top_ids"].shape == (len(e["targets"]), 5)


@pytest.mark.parametrize("task", ["gsm8k_zero_shot_cot", "gsm8k_teacher_zero_shot_cot"])
def test_a_slice_of_the_test_split_has_no_training_question(tmp_path, task):
    """Nor does a misspelt split, which was the training split once."""
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", str(VOCABULARY_PATH))
    write_small(tmp_path, [f"What is {i} plus {i}?" for i in range(510)], ["One?", "Two?", "3?"])
    asked = [e["question"].decode() for e in read(task, "test[:2]", 5)]
    assert asked == ["One?", "Two?"]
    with pytest.raises(UserError, match=r"split 'tset'.*expected"):
        read(task, "tset", 1)


def test_a_store_of_nothing_but_validation_questions_stops_the_run(bound, bind_store):
    bind_store([chain(lines(bound, "train")[-1], 7472)])
    batches = TaskBatches("gsm8k_teacher_zero_shot_cot", {"inputs": 200, "targets": 50}, 1)
    assert list(batches.batches(EncoderDecoder())) == []  # the trainer says so: see loop.prefetch


def test_without_a_store_the_remedy_is_its_macro(bound):
    with pytest.raises(UserError, match=r"no teacher store.*--gin\.TEACHER_STORE"):
        read("gsm8k_teacher_zero_shot_cot", "train", 1)
