"""The CoT Collection's tasks, on entries made here; strings by the paper's rule, written out."""

import collections
import itertools
import json
import os
import random
import subprocess
import sys

import gin
import numpy as np
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
from cot_flax.store.make import template
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
    mixture = seqio.get_mixture_or_task(
        MIX
    )  # few-shot tasks, which the paper has not, are not in it
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {COT: 1.0, DIRECT: 0.0}
    lengths = {"inputs": 512, "targets": 512}
    assert len(read(MIX, lengths=lengths, count=60, num_epochs=None, shuffle=True, seed=0)) == 60
    gin.bind_parameter(f"{MIX}/cot_flax.data.registration.format_rates.zero_shot_answer", 0.5)
    assert [mixture.get_rate(task) for task in mixture.tasks] == [1.0, 0.5]


FEW_COT, FEW_DIRECT = "cot_collection_few_shot_cot", "cot_collection_few_shot_direct"


def exemplars_of(example, entries):
    """The entries that a prompt shows, in order, by their sources, each of which has a number."""
    asked = example["inputs_pretokenized"].decode()
    places = {asked.index(e["source"]): e for e in entries if e["source"] in asked}
    *shown, own = (places[place] for place in sorted(places))
    assert own["source"].encode() == example["question"]
    return shown


@pytest.mark.parametrize("task", [FEW_COT, FEW_DIRECT])
def test_exemplars_are_of_the_same_task_drawn_by_seed(bind, task):
    entries = make_entries(120)
    bind(entries)
    examples = read(task)
    assert len(examples) == 120
    draws = set()
    for example in examples:
        shown = exemplars_of(example, entries)
        assert len(shown) == 4
        assert {e["task"] for e in shown} == {example["task"].decode()}
        assert all(e["rationale"] for e in shown)
        assert example["question"].decode() not in [e["source"] for e in shown]
        draws.add(tuple(e["source"] for e in shown))
    assert len(draws) > 100
    prompts = written(examples)
    assert written(read(task)) == prompts
    gin.bind_parameter("cot_collection/cot_flax.data.registration.prompting.seed", 1)
    assert written(read(task)) != prompts


def test_a_few_shot_prompt_is_exemplars_and_the_papers_strings(bind):
    entries = make_entries(3)
    for entry in entries:
        entry["task"] = "one"
    bind(entries)
    gin.bind_parameter("cot_collection/cot_flax.data.registration.prompting.shots", 1)
    for example in read(FEW_COT):
        (shown,) = exemplars_of(example, entries)
        (own,) = (e for e in entries if e["source"].encode() == example["question"])
        asked = "".join(strings(shown)) + " ### " + strings(own)[0]
        assert (
            example["inputs_pretokenized"].decode(),
            example["targets_pretokenized"].decode(),
        ) == (
            asked,
            strings(own)[1],
        )


def test_a_task_with_few_entries_shows_what_there_is(bind):
    entries = make_entries(4)
    entries[1]["task"] = entries[2]["task"] = "two"
    bind(entries)
    found = {e["question"].decode(): len(exemplars_of(e, entries)) for e in read(FEW_COT)}
    assert [found[entry["source"]] for entry in entries] == [0, 1, 1, 0]
    alone = next(e for e in read(FEW_COT) if e["question"].decode() == entries[0]["source"])
    assert alone["inputs_pretokenized"].decode() == strings(entries[0])[0]


def test_exemplars_fit_beside_the_question(bind):
    entries = make_entries(150, most=30)
    bind(entries)
    lengths = {"inputs": 160, "targets": 160}
    gin.bind_parameter(f"{MODULE}.lengths.tokens", lengths)
    alone = read(COT)
    cut = CUTS.counts(COT)[1]
    CUTS.forget(FEW_COT)
    examples = read(FEW_COT)
    assert len(examples) == len(alone) == 150
    assert CUTS.counts(FEW_COT)[1] == cut  # none that is not too long by itself
    assert max(len(e["inputs"]) for e in examples) <= 160
    shown = collections.Counter(len(exemplars_of(e, entries)) for e in examples)
    assert len(shown) > 2 and max(shown) <= 4  # as many as fit


def test_held_out_questions_are_no_exemplars(bind):
    entries = make_entries(200)
    bind(entries)
    gin.bind_parameter(f"{MODULE}.data.validation", 0.3)
    held_out = {e["question"].decode() for e in read(COT, "validation")}
    examples = read(FEW_COT) + read(FEW_COT, "validation")
    shown = {e["source"] for example in examples for e in exemplars_of(example, entries)}
    assert len(examples) == 200 and held_out and shown
    assert not shown & held_out


def test_a_store_of_the_collection_has_no_few_shot_tasks():
    names = set(seqio.TaskRegistry.names())
    assert {FEW_COT, "cot_collection_teacher_cot", "cot_collection_teacher_direct"} <= names
    assert "cot_collection_teacher_few_shot_cot" not in names


@pytest.mark.slow
def test_seqios_cache_holds_what_was_read(bind, tmp_path):
    """Its own script, in a process of its own."""
    pytest.importorskip("apache_beam", reason="pip install cot-flax[beam]")
    path = bind(make_entries(30))
    (tmp_path / "small.py").write_text(
        "import gin\nfrom cot_flax.tasks import cot_collection\n"
        f"gin.bind_parameter('{MODULE}.data.directory', {str(path)!r})\n"
        f"gin.bind_parameter('{MODULE}.data.validation', 0.2)\n"
        "gin.bind_parameter('cot_flax.data.features.t5_vocabulary_file.path', "
        f"{str(VOCABULARY_PATH)!r})\n"
    )
    gin.bind_parameter(f"{MODULE}.data.validation", 0.2)
    names, cache = (COT, DIRECT, FEW_COT), tmp_path / "offline"
    command = [sys.executable, "-m", "seqio.scripts.cache_tasks_main", "--module_import=small"]
    command += [f"--tasks={','.join(names)}", f"--output_cache_dir={cache}"]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]

    def by_id(task, **settings):
        examples = read(task, lengths={"inputs": 96, "targets": 64}, **settings)
        return sorted(examples, key=lambda example: example["id"])

    fresh = {name: by_id(name) for name in names}
    bind(make_entries(5, seed=1))  # of which the cache knows nothing
    seqio.set_global_cache_dirs([str(cache)])
    try:
        cached = {name: by_id(name, use_cached=True) for name in names}
    finally:
        seqio.set_global_cache_dirs([])
    for name in names:
        assert len(fresh[name]) == len(cached[name]) > 15
        for one, other in zip(fresh[name], cached[name], strict=True):
            for key in ("inputs", "targets", "question", "answer", "answer_kind"):
                np.testing.assert_array_equal(one[key], other[key])


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
    tally = prepared(path, store)
    assert tally.read == 40 == tally.kept + tally.dropped + tally.rejected.total()
    gin.bind_parameter(f"{MODULE}.teacher_store.directory", store)
    examples = read("cot_collection_teacher_cot", lengths={"inputs": 512, "targets": 40})
    assert len(examples) == tally.kept == 40
    vocabulary = provider.output_features["targets"].vocabulary
    for e in examples:
        said = vocabulary.decode(e["targets"].tolist())
        assert said.endswith(e["answer"].decode())
        assert len(e["targets"]) == len(e["teacher_top_ids"]) <= 40


def prepared(path, store, **settings):
    task = seqio.get_mixture_or_task("cot_collection_teacher_cot")
    filters = Filters(rules="none", answer_kind="gold", **settings)
    return prepare(
        [str(path)],
        store,
        vocabulary=task.output_features["targets"].vocabulary,
        settings=Preparation(filters, template=template("cot_collection_teacher_cot")),
        workers=1,
    )


def test_entries_without_a_rationale_are_direct_examples_of_a_store(bind, tmp_path):
    entries = make_entries(40)
    del entries[9]["rationale"]
    entries[19]["rationale"] = None
    entries[29]["rationale"] = " \n"
    store = str(tmp_path / "store")
    tally = prepared(bind(entries), store)
    assert (tally.read, tally.kept, tally.direct, tally.one_hot_chains) == (40, 40, 4, 36)
    assert "kept without a chain, to learn the answer alone: 4" in tally.summary()
    gin.bind_parameter(f"{MODULE}.teacher_store.directory", store)

    def texts(task):
        vocabulary = seqio.get_mixture_or_task(task).output_features["targets"].vocabulary
        return sorted(
            (e["inputs_pretokenized"].decode(), vocabulary.decode(e["targets"].tolist()))
            for e in read(task)
        )

    for entry in entries:
        entry["rationale"] = (entry.get("rationale") or "").strip()
    for name, direct in (("cot", False), ("direct", True)):
        wanted = [strings(entry, direct=direct) for entry in entries]
        # T5's pieces have no newline.
        found = texts(f"cot_collection_teacher_{name}")
        assert found == sorted((asked, " ".join(said.split())) for asked, said in wanted)


def test_a_store_for_kl_has_no_direct_examples(bind, tmp_path):
    entries = make_entries(20)
    with pytest.raises(UserError, match=r"no usable chain.*'no_logprobs': 20"):
        prepared(bind(entries), str(tmp_path / "store"), require_logprobs=True)
