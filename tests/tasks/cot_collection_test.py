"""The CoT Collection's tasks, on entries made here; strings by the paper's rule, written out."""

import collections
import itertools
import json
import random

import gin
import pytest
import seqio

from cot_flax.chains.filtering import Filters
from cot_flax.chains.preparation import Preparation
from cot_flax.data import shards
from cot_flax.data.batches import TaskBatches
from cot_flax.data.preprocessors import CUTS
from cot_flax.data.registration import cot_task, kind_of
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.store.prepare import prepare
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.tasks import cot_collection
from cot_flax.tasks.cot_collection import entry_kind

MODULE = "cot_flax.tasks.cot_collection"
COT, DIRECT, MIX = "cot_collection_cot", "cot_collection_direct", "cot_collection_mix"
WORDS = "a ball is red and the box has two balls so we add them to get more than five of it".split()  # noqa: SIM905


@pytest.fixture(autouse=True)
def _bound(tmp_path, monkeypatch):
    monkeypatch.setenv("COT_FLAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(cot_collection.DIRECTORY, raising=False)
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", str(VOCABULARY_PATH))
    gin.bind_parameter(f"{MODULE}.data.validation", 0.0)
    for task in (COT, DIRECT):
        CUTS.forget(task)


def words(drawn, count):
    return " ".join(drawn.choices(WORDS, k=count))


def make_entries(count, seed=0, most=20):
    """Entries of all kinds of answers, in which every tenth has no rationale."""
    drawn = random.Random(seed)
    targets = ("yes", "(B)", "1,080", "the red ball")
    return [
        {
            "source": f"{words(drawn, drawn.randint(2, most))} {n}?\n",
            "target": targets[n % 4],
            "rationale": ""
            if n % 10 == 9
            else words(drawn, drawn.randint(2, most)) + "." * (n % 2),
            "config": ("flan", "sni")[n % 2],
            "task": f"task{n % 6}",
            "prev": None,
        }
        for n in range(count)
    ]


@pytest.fixture
def bind(tmp_path):
    """Writes entries in the public form or another, and binds the file."""

    def bind(entries, name="collection.json"):
        path = tmp_path / name
        if name.endswith(".json"):
            path.write_text(json.dumps({str(n): entry for n, entry in enumerate(entries)}))
        elif name.endswith(".parquet"):
            pyarrow = pytest.importorskip("pyarrow")
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(entries), path)
        else:
            path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        gin.bind_parameter(f"{MODULE}.data.directory", str(path))
        return path

    return bind


def read(task, split="train", lengths=None, count=None, **settings):
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        lengths, split, **{"shuffle": False, "num_epochs": 1} | settings
    )
    return list(dataset.take(count or -1).as_numpy_iterator())


def strings(entry, *, direct=False):
    """The input and target that methods.md 4.1 has of Datasets_end2end.py."""
    if direct or not entry["rationale"]:
        return entry["source"] + "\n[ANSWER] ", entry["target"]
    stop = "" if entry["rationale"].endswith(".") else "."
    return (
        entry["source"] + "\n\nLet's think step by step.\n",
        entry["rationale"] + stop + "\n[ANSWER] " + entry["target"],
    )


def written(examples):
    return sorted(
        (e["inputs_pretokenized"].decode(), e["targets_pretokenized"].decode()) for e in examples
    )


@pytest.mark.parametrize("name", ["c.json", "c.jsonl", "c.parquet"])
def test_the_papers_strings_byte_for_byte_on_1000_entries(bind, name):
    entries = make_entries(1000)
    bind(entries, name)
    assert written(read(COT)) == sorted(map(strings, entries))


def test_the_direct_strings_byte_for_byte(bind):
    entries = make_entries(200)
    bind(entries)
    assert written(read(DIRECT)) == sorted(strings(e, direct=True) for e in entries)


def test_the_papers_strings_of_1000_real_rationales(bind, shared_data):
    rows = []
    for path in sorted((shared_data / "flan_cot").glob("*.tsv")):
        for line in path.read_text().split("\n")[:-1]:
            source, target, rationale = line.replace("\\n", "\n").split("\t")
            rows.append({"source": source, "target": target, "rationale": rationale})
    drawn = random.Random(4).sample(rows, 1000)
    bind(drawn)
    gin.bind_parameter(
        "cot_flax.data.features.t5_vocabulary_file.path",
        str(shared_data / "t5_vocab" / "spiece.model"),
    )
    assert written(read(COT)) == sorted(map(strings, drawn))


def test_0_targets_are_lost_on_entries_of_100_to_3000_tokens(bind, shared_data):
    gin.bind_parameter(
        "cot_flax.data.features.t5_vocabulary_file.path",
        str(shared_data / "t5_vocab" / "spiece.model"),
    )
    assert_nothing_is_lost(bind, 120, {"inputs": 512, "targets": 512})


def test_0_targets_are_lost_where_entries_are_cut(bind):
    assert_nothing_is_lost(bind, 40, {"inputs": 128, "targets": 96})


def assert_nothing_is_lost(bind, count, lengths):
    drawn = random.Random(1)
    entries = make_entries(count)
    for entry in entries:
        size = drawn.randint(100, 3000)
        entry["source"] = words(drawn, size)
        if entry["rationale"]:
            entry["rationale"] = words(drawn, drawn.randint(100, 3000)) + "."
    bind(entries)
    examples = read(COT, lengths=lengths)
    assert len(examples) == count
    vocabulary = seqio.get_mixture_or_task(COT).output_features["targets"].vocabulary
    for e in examples:
        asked = vocabulary.decode(e["inputs"].tolist())
        said = vocabulary.decode(e["targets"].tolist())
        direct = not e["rationale"]
        assert asked.endswith("[ANSWER]" if direct else "Let's think step by step.")
        assert said.endswith(("" if direct else "[ANSWER] ") + e["answer"].decode())
        assert len(e["inputs"]) <= lengths["inputs"]
        assert len(e["targets"]) <= lengths["targets"]
        assert e["inputs"][-1] == e["targets"][-1] == 1
    read_, inputs, targets, lost = CUTS.counts(COT)
    limits = lengths["inputs"], lengths["targets"]
    whole = [[len(vocabulary.encode(text)) + 1 for text in strings(entry)] for entry in entries]
    assert (read_, lost) == (count, 0)
    assert [inputs, targets] == [sum(w[i] > limits[i] for w in whole) for i in (0, 1)]
    assert inputs > count / 3


def test_a_cut_target_keeps_the_start_of_its_rationale(bind):
    bind([{"source": "red?", "target": "yes", "rationale": "the box is red and " * 30}])
    whole = read(COT, lengths={"inputs": 500, "targets": 2000})[0]
    gin.bind_parameter(f"{MODULE}.lengths.tokens", {"inputs": 500, "targets": 40})
    cut = read(COT)[0]
    vocabulary = seqio.get_mixture_or_task(COT).output_features["targets"].vocabulary
    end = len(vocabulary.encode("\n[ANSWER] yes")) + 1
    assert cut["targets"].tolist() == [*whole["targets"][: 40 - end], *whole["targets"][-end:]]


def test_an_answer_that_is_too_long_is_left_out_and_counted(bind):
    bind(
        [
            {"source": "red?", "target": "a ball " * 40, "rationale": "so it is."},
            {"source": "blue?", "target": "yes", "rationale": "so it is."},
        ]
    )
    examples = read(COT, lengths={"inputs": 64, "targets": 40})
    assert [e["answer"] for e in examples] == [b"yes"]
    assert CUTS.counts(COT) == (2, 0, 0, 1)
    assert CUTS.report(COT) == f"{COT}: cut of 2 examples: 1 answers too long to be learnt"


def test_what_was_cut_is_in_the_trainers_report(bind):
    bind([{"source": f"{n} box? " * 30, "target": "yes", "rationale": "red."} for n in range(8)])
    lengths = {"inputs": 64, "targets": 40}
    gin.bind_parameter(f"{MODULE}.lengths.tokens", lengths)
    data = TaskBatches(MIX, lengths, batch_size=4)
    batches = list(itertools.islice(data.batches(EncoderDecoder()), 2))
    assert len(batches) == 2
    assert f"{COT}: cut of" in data.report()
    assert "left out" not in data.report()


def test_a_cut_is_logged_once_there_are_many(bind, caplog):
    bind([{"source": f"{n} box? " * 30, "target": "yes", "rationale": "red."} for n in range(1000)])
    read(COT, lengths={"inputs": 64, "targets": 64})
    assert "cot_collection_cot: cut of 1,000 examples: 1,000 inputs" in caplog.text


@pytest.mark.parametrize(
    "target, labels, kind",
    [
        ("yes", (), "yes_no"),
        ("(B)", (), "choice"),
        ("1,080", (), "number"),
        ("the red ball", (), "text"),
        ("yes", ("yes", "no"), "yes_no"),
        ("yes", ("yes", "no", "it is not possible to tell"), "text"),
        ("A", ("A", "B", "C"), "choice"),
        ("3", ("3", "three of them"), "text"),
    ],
)
def test_each_entry_has_its_own_answer_kind(target, labels, kind):
    assert entry_kind(target, labels) == kind


def test_the_metric_reads_each_answer_by_its_kind(bind):
    bind(make_entries(40))
    task = seqio.get_mixture_or_task(COT)
    examples = read(COT)
    kinds = collections.Counter(kind_of(COT, e) for e in examples)
    assert set(kinds) == {"yes_no", "choice", "number", "text"}
    said = {b"yes": "So. [ANSWER] Yes.", b"(B)": "[ANSWER] B", b"1,080": "[ANSWER] 1080"}
    texts = [said.get(e["answer"], "It is. [ANSWER] The red ball.") for e in examples]
    golds = [task.postprocess_fn(None, example=e, is_target=True) for e in examples]
    assert task.metric_fns[0](golds, texts)["accuracy"] == 1.0
    assert task.metric_fns[0](golds, texts[1:] + texts[:1])["accuracy"] < 0.6


def test_caps_are_numbers_of_gin(bind):
    bind(make_entries(120))

    def counts():
        return collections.Counter(e["task"].decode() for e in read(COT))

    assert set(counts().values()) == {20}
    gin.bind_parameter(f"{MODULE}.caps.each", 10)
    gin.bind_parameter(f"{MODULE}.caps.by_category", {"sni": 8})
    gin.bind_parameter(f"{MODULE}.caps.by_task", {"task1": 3})
    # Even numbers are FLAN's, odd ones SNI's.
    wanted = {"task0": 10, "task1": 3, "task2": 10, "task3": 8, "task4": 10, "task5": 8}
    assert counts() == wanted
    assert [e["id"] for e in read(COT)] == [e["id"] for e in read(COT)]


def test_the_mixture_is_the_papers_unless_gin_binds_rates(bind):
    bind(make_entries(40))
    mixture = seqio.get_mixture_or_task(MIX)
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {COT: 1.0, DIRECT: 0.0}
    lengths = {"inputs": 512, "targets": 512}
    assert len(read(MIX, lengths=lengths, count=60, num_epochs=None, shuffle=True, seed=0)) == 60
    gin.bind_parameter(f"{MIX}/cot_flax.data.registration.format_rates.zero_shot_answer", 0.5)
    assert [mixture.get_rate(task) for task in mixture.tasks] == [1.0, 0.5]


def test_the_cards_say_what_is_known():
    card = cot_task(COT)
    assert (card.dataset, card.format, card.template) == (
        "cot_collection",
        "zero_shot_cot",
        "kim2023",
    )
    assert (card.role, card.seen_by_flan) == ("train", True)
    assert cot_task(DIRECT).format == "zero_shot_answer"


def test_the_environment_names_the_file(bind, monkeypatch):
    path = bind(make_entries(6))
    gin.clear_config()
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", str(VOCABULARY_PATH))
    monkeypatch.setenv(cot_collection.DIRECTORY, str(path))
    assert len(read(COT)) == 6


def test_a_folder_without_files_is_named(tmp_path):
    gin.bind_parameter(f"{MODULE}.data.directory", str(tmp_path))
    with pytest.raises(UserError, match=r"a folder without any.*\.parquet"):
        read(COT)


def test_an_entry_without_an_answer_is_counted(bind):
    entries = make_entries(60)
    bind([*entries, {"source": "red?", "rationale": "so."}, {"target": "yes", "rationale": "so."}])
    assert len(read(COT)) == 60
    assert cot_collection.SOURCE.manifest()["rejected"] == {"missing_field": 2}


@pytest.mark.slow
def test_hosts_share_out_the_mixture(bind, monkeypatch):
    monkeypatch.setattr(shards, "_BYTES", 2000)
    bind(make_entries(60))
    parts = [read(COT, shard_info=seqio.ShardInfo(n, 2)) for n in (0, 1)]
    ids = [[e["id"] for e in part] for part in parts]
    assert all(ids)
    assert sorted(ids[0] + ids[1]) == sorted(e["id"] for e in read(COT))


def test_a_store_of_the_collection_is_trained_on(bind, tmp_path):
    entries = make_entries(40)
    path = bind(entries)
    store = str(tmp_path / "store")
    provider = seqio.get_mixture_or_task("cot_collection_teacher_cot")
    tally = prepare(
        [str(path)],
        store,
        vocabulary=provider.output_features["targets"].vocabulary,
        settings=Preparation(Filters(rules="none", answer_kind="gold"), template=template()),
        workers=1,
    )
    assert tally.read == 40 == tally.kept + tally.dropped + tally.rejected.total()
    gin.bind_parameter(f"{MODULE}.teacher_store.directory", store)
    examples = read("cot_collection_teacher_cot", lengths={"inputs": 512, "targets": 40})
    assert len(examples) == tally.kept == 36
    vocabulary = provider.output_features["targets"].vocabulary
    for e in examples:
        said = vocabulary.decode(e["targets"].tolist())
        assert said.endswith(f"[ANSWER] {e['answer'].decode()}")
        assert len(e["targets"]) == len(e["teacher_top_ids"]) <= 40


def template():
    from cot_flax.store.make import template

    return template("cot_collection_teacher_cot")
