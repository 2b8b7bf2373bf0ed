"""From files to a store: what becomes of every record, and what a kill leaves."""

import dataclasses
import gzip
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import seqio
from support.tokenizers import world_without

from cot_flax.chains.codex import read_codex_dump
from cot_flax.chains.filtering import Filters
from cot_flax.chains.preparation import Preparation
from cot_flax.chains.samples import Logprobs, to_line, write_samples
from cot_flax.chains.tally import Tally
from cot_flax.data.features import fingerprint
from cot_flax.errors import UserError
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import make_samples
from cot_flax.store import layout
from cot_flax.store.prepare import prepare, stop_if_unlikely
from cot_flax.tasks.stories import VOCABULARY

GIVEN = Preparation(Filters(rules="none"))  # as for human rationales


def run(inputs, out, *, settings=None, vocabulary=VOCABULARY, workers=1, **options):
    inputs = [inputs] if isinstance(inputs, Path) else inputs
    return prepare(
        [str(path) for path in inputs],
        str(out),
        vocabulary=vocabulary,
        settings=settings or Preparation(),
        workers=workers,
        **options,
    )


def written(path, samples):
    write_samples(path, samples)
    return path


def records(out):
    return list(layout.dataset(str(out)).as_numpy_iterator())


def ids(out):
    return [record["id"].decode() for record in records(out)]


def rejected(out):
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def dropped(out):
    with gzip.open(out / "dropped.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def content(out):
    """The bytes of a store's files, and of anything else that lies there."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def broken(sample, change):
    """The sample's line after a change of its decoded record."""
    record = json.loads(to_line(sample))
    change(record)
    return json.dumps(record).encode() + b"\n"


def replace_first(name, value):
    def change(record):
        record["logprobs"][name][0] = value

    return change


BROKEN = {
    "bad_json": b'{"id": "stories-train-2", nonsense}\n',
    "missing_field": lambda record: record.pop("question"),
    "unknown_field": lambda record: record.update(extra=1),
    "wrong_type": lambda record: record.update(sample="0"),
    "tokens_do_not_join": replace_first("tokens", "Other"),
    "probability_above_1": replace_first("token_logprobs", 0.5),
    "nan_or_infinite": replace_first("token_logprobs", float("nan")),
    "lengths_differ": lambda record: record["logprobs"]["top_logprobs"].pop(),
    "bad_text": lambda record: record.update(text=record["text"] + "\ud83d", logprobs=None),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_a_broken_line_is_rejected_by_name_and_the_others_are_prepared(tmp_path, samples, reason):
    lines = [to_line(sample) for sample in samples]
    change = BROKEN[reason]
    lines[5] = change if isinstance(change, bytes) else broken(samples[5], change)
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"".join(lines))
    whole = written(tmp_path / "whole.jsonl", samples[:5] + samples[6:])
    run(whole, tmp_path / "expected")
    tally = run(path, tmp_path / "out", max_rejected=0.05)  # 1 of 24
    assert tally.rejected == {reason: 1}
    assert tally.read == 24 == tally.kept + tally.dropped + 1
    ((name, error),) = [line.values() for line in rejected(tmp_path / "out")]
    assert name == reason
    assert f"{path}, line 6: " in error
    expected, found = (content(tmp_path / name) for name in ("expected", "out"))
    assert found[layout.shard_name(0, 1)] == expected[layout.shard_name(0, 1)]


@pytest.mark.parametrize("line", [b"garbage\n", b"{}\n", b'{"id": "cut off", "da\n'])
def test_a_broken_line_does_not_divide_its_question(tmp_path, line):
    """Not even where it stands at the end of a chunk, between two chains of one question."""
    chains = make_samples(make_stories(8, split="train"), samples=3)
    lines = [to_line(sample) for sample in chains]
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"".join([*lines[:10], line, *lines[10:]]))
    tally = run(path, tmp_path / "out", records_per_shard=11, max_rejected=0.1)
    assert (tally.read, tally.rejected.total(), tally.questions) == (25, 1, 8)


def test_a_line_that_breaks_off_at_the_end_of_the_file(tmp_path, samples):
    path = tmp_path / "samples.jsonl"
    path.write_bytes(b"".join(map(to_line, samples))[:-30])
    tally = run(path, tmp_path / "out")
    assert (tally.read, tally.rejected) == (24, {"bad_json": 1})
    assert f"{path}, line 24: " in rejected(tmp_path / "out")[0]["error"]


def test_a_gzip_file_that_breaks_off(tmp_path, samples):
    whole = gzip.compress(b"".join(map(to_line, samples)))
    path = tmp_path / "samples.jsonl.gz"
    path.write_bytes(whole[:-12])
    tally = run(path, tmp_path / "out")
    assert tally.rejected == {"truncated_file": 1}
    # At most the last of the records is lost with what closes the file.
    assert 23 <= tally.kept + tally.dropped <= 24
    assert tally.read == tally.kept + tally.dropped + 1
    assert re.search(f"{path}, after line 2[34]: ", rejected(tmp_path / "out")[0]["error"])


def test_rows_of_another_width_in_a_tsv(tmp_path):
    path = tmp_path / "sums_train.tsv"
    lines = ["One and one?\t2\t1 + 1 = 2.", "One and two?\t3", "Two?\t2\tIt is.\tyes"]
    path.write_text("".join(line + "\n" for line in lines))
    tally = run(path, tmp_path / "out", settings=GIVEN, max_rejected=0.7)
    assert (tally.read, tally.kept, tally.rejected) == (3, 1, {"columns": 2})
    for line, number, columns in zip(rejected(tmp_path / "out"), (2, 3), (2, 4), strict=True):
        assert f"{path}, line {number}: {columns} columns" in line["error"]


def entry(question, answer, chain):
    return {"source": question, "target": answer, "rationale": chain, "task": "sums", "type": "CoT"}


def test_a_cot_collection_that_breaks_off(tmp_path):
    entries = {str(i): entry(f"{i} and 1?", str(i + 1), f"{i} + 1.") for i in range(30)}
    entries["7"] = {"source": "no more"}
    entries["8"] = "no object"
    path = tmp_path / "CoT_collection_en.json"
    path.write_text(json.dumps(entries)[:-40])  # inside entry 29
    tally = run(path, tmp_path / "out", settings=GIVEN, max_rejected=0.2)
    assert tally.rejected == {"missing_field": 1, "wrong_type": 1, "truncated_file": 1}
    assert (tally.read, tally.kept) == (30, 27)
    lines = {line["reason"]: line["error"] for line in rejected(tmp_path / "out")}
    assert f"{path}, entry 7: " in lines["missing_field"]
    assert f"{path}, entry 8: " in lines["wrong_type"]
    assert f"{path}, behind the last record" in lines["truncated_file"]
    assert ids(tmp_path / "out")[0] == "sums-0/0"


@pytest.mark.parametrize(("share", "stops"), [(0.25, False), (0.2499, True)])
def test_the_run_goes_on_up_to_the_share_of_rejected_records(tmp_path, samples, share, stops):
    path = tmp_path / "samples.jsonl"
    lines = [to_line(s) for s in samples[:6]]
    path.write_bytes(b"".join([*lines, b"1\n", b"2\n"]))
    if stops:
        with pytest.raises(UserError, match=r"2 of 8 records .*'bad_json': 2.*at most 25\.0%"):
            run(path, tmp_path / "out", max_rejected=share)
        assert not (tmp_path / "out" / "COMPLETED").exists()
        (lines,) = (tmp_path / "out" / "parts").glob("*.rejected.jsonl")  # as the remedy says
        assert f"{path}, line 7: " in lines.read_text()
        run(path, tmp_path / "out", max_rejected=1.0)  # goes on from there
    else:
        run(path, tmp_path / "out", max_rejected=share)
    assert (tmp_path / "out" / "COMPLETED").exists()


def test_golds_of_another_kind_stop_and_say_which(tmp_path, make_sample):
    """60 right chains of StrategyQA for a task of numbers were all dropped as no_answer."""
    samples = [
        make_sample(f"It is so, {n}. So the answer is yes.", "yes", id=f"q{n}") for n in range(60)
    ]
    path = written(tmp_path / "samples.jsonl", samples)
    with pytest.raises(UserError, match=r"60 of 60 gold answers.*'yes', which look like yes_no.*"):
        run(path, tmp_path / "out")
    tally = run(path, tmp_path / "out", settings=Preparation(Filters(answer_kind="gold")))
    assert tally.fates == {"kept": 60}


def test_every_dropped_sample_is_there_whole_with_its_reason(tmp_path, make_sample):
    long = " ".join(["1"] * 60) + " The answer is 2"
    fates = [
        (make_sample("1 + 1 = 2.\nThe answer is 2"), None),
        (make_sample("1 + 1 = 3.\nThe answer is 3", sample=1), "wrong_answer"),
        (make_sample("I do not know", sample=2), "no_answer"),
        (make_sample("1 + 1", sample=3, finish_reason="length"), "truncated"),
        (make_sample("The answer is 2", sample=4, finish_reason="malformed"), "malformed"),
        (make_sample("1 + 1 = 2.\nThe answer is 2", sample=5), "repeated"),
        (make_sample(long, sample=6), "too_long"),
        (make_sample("The answer is 2", "who knows", id="gold"), "unreadable_gold_answer"),
        (make_sample(" \n", id="empty"), "empty"),
        (make_sample("2.", tokens=[("2.", -0.5, {"2.": -0.5, "é": -1})], gold="3"), "wrong_answer"),
    ]
    fates[-1] = (dataclasses.replace(fates[-1][0], id="é"), "wrong_answer")
    path = written(tmp_path / "samples.jsonl", [sample for sample, _ in fates])
    settings = Preparation(max_target_tokens=40)
    tally = run(path, tmp_path / "out", settings=settings, max_rejected=0.1)
    assert dropped(tmp_path / "out") == [
        {"reason": reason, **json.loads(to_line(sample))} for sample, reason in fates if reason
    ]
    assert tally.fates == Counter(reason or "kept" for _, reason in fates)
    assert (tally.read, tally.kept, tally.dropped) == (10, 1, 9)
    assert ids(tmp_path / "out") == ["sums-0/0"]


def test_the_first_kept_chain_of_every_question_is_marked(tmp_path, make_sample):
    texts = ["The answer is 3", "The answer is 2", "It is 2.", "So 2."]
    chains = [
        make_sample(text, id=f"q{q}", sample=n)
        for q in range(3)
        for n, text in enumerate(texts[q:] if q < 2 else texts[:1])
    ]
    run(written(tmp_path / "samples.jsonl", chains), tmp_path / "out", records_per_shard=1)
    marks = {r["id"].decode(): int(r["first"]) for r in records(tmp_path / "out")}
    assert marks == {"q0/1": 1, "q0/2": 0, "q0/3": 0, "q1/0": 1, "q1/1": 0, "q1/2": 0}
    tally = layout.read_manifest(str(tmp_path / "out"))["tally"]
    assert (tally["questions"], tally["kept_chains"]) == (3, {"3": 2, "0": 1})


@pytest.mark.parametrize("side", ["max_target_tokens", "max_question_tokens"])
def test_limits_count_tokens_with_eos(tmp_path, samples, side):
    def size(sample):
        text = sample.text if side == "max_target_tokens" else sample.question
        return len(VOCABULARY.encode(text)) + 1

    path = written(tmp_path / "samples.jsonl", samples)
    limit = sorted({size(s) for s in samples})[-2]  # all but the longest
    right = [s for s in samples if s.text.endswith(f" {s.gold_answer}")]
    tally = run(path, tmp_path / "out", settings=Preparation(**{side: limit}))
    expected = [f"{s.id}/{s.sample}" for s in right if size(s) <= limit]
    assert ids(tmp_path / "out") == expected
    assert tally.fates["too_long"] == len(right) - len(expected) > 0


def test_an_unlabelled_chain_gets_its_own_answer(tmp_path, make_sample):
    chains = [make_sample("1 + 1 = 2, so 2 it is.", ""), make_sample("None.", "", id="none")]
    tally = run(written(tmp_path / "samples.jsonl", chains), tmp_path / "out")
    (record,) = records(tmp_path / "out")
    assert record["answer"] == b"2"
    assert VOCABULARY.decode(record["targets"].tolist()).endswith(" The answer is 2")
    assert tally.fates == {"kept": 1, "no_answer": 1}


def test_several_inputs_of_several_formats(tmp_path, samples, make_sample):
    inputs = [
        written(tmp_path / "a.jsonl", [make_sample("The answer is 2")]),
        written(tmp_path / "b.jsonl.gz", samples),
        tmp_path / "c.tsv",
        tmp_path / "d.json",
    ]
    inputs[2].write_text("One?\t1\tIt is.\n")
    inputs[3].write_text(json.dumps({"5": entry("One?", "1", "It is.")}))
    tally = run(inputs, tmp_path / "out", settings=GIVEN, records_per_shard=7)
    own = [f"{s.id}/{s.sample}" for s in samples]
    texts = [" ".join(s.text.split()) for s in samples]
    repeated = [len(set(texts[i : i + 2])) < 2 for i in range(0, 24, 2)]
    expected = [name for i, name in enumerate(own) if not (i % 2 and repeated[i // 2])]
    assert ids(tmp_path / "out") == ["sums-0/0", *expected, "c-1/0", "sums-5/0"]
    assert tally.read == 1 + 24 + 1 + 1


def test_a_question_that_comes_back_is_an_error(tmp_path, samples):
    path = written(tmp_path / "samples.jsonl", [*samples, samples[0]])
    message = r"samples\.jsonl, line 25: question 'stories-train-0' again.*teach merge"
    for size in (1, 2048):  # in another chunk, in the same one
        with pytest.raises(UserError, match=message):
            run(path, tmp_path / "out", records_per_shard=size)
    again = written(tmp_path / "again.jsonl", samples[4:5])
    path = written(tmp_path / "samples.jsonl", samples)
    with pytest.raises(UserError, match=r"again\.jsonl, line 1: question 'stories-train-2' again"):
        run([path, again], tmp_path / "out")


def test_nothing_kept_is_an_error_that_names_the_reasons(tmp_path, make_sample):
    path = written(tmp_path / "samples.jsonl", [make_sample("The answer is 3")])
    with pytest.raises(UserError, match=r"no usable chain .*'wrong_answer': 1.*--rules"):
        run(path, tmp_path / "out")
    with pytest.raises(UserError, match="no readable manifest"):
        records(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", r"none\.jsonl: No such file"),
        ("empty.csv", r"empty\.csv: an empty file"),
        ("empty.jsonl", r"empty\.jsonl: an empty file"),
        ("empty.tsv", r"empty\.tsv: an empty file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, message):
    if not name.startswith("none"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        run(tmp_path / name, tmp_path / "out")


def test_a_vocabulary_without_a_tokenizer_is_refused_before_anything_is_written(tmp_path, samples):
    path = written(tmp_path / "samples.jsonl", samples)
    with pytest.raises(UserError, match="a PassThroughVocabulary; expected a SentencePiece or a"):
        run(path, tmp_path / "out", vocabulary=seqio.PassThroughVocabulary(size=100_000))
    assert not (tmp_path / "out").exists()


def test_progress_counts_up_to_the_result(tmp_path, samples):
    seen = []
    path = written(tmp_path / "samples.jsonl", samples)
    tally = run(
        path,
        tmp_path / "out",
        records_per_shard=6,
        progress=lambda t: seen.append((t.read, t.kept)),
    )
    assert [read for read, _ in seen] == [6, 12, 18, 24]
    assert seen[-1] == (tally.read, tally.kept)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """100 chains, one of them broken, in a file; and their store, made at one go."""
    folder = tmp_path_factory.mktemp("many")
    lines = list(map(to_line, make_samples(make_stories(50, split="train"), samples=2)))
    lines[40] = b"broken\n"
    (folder / "samples.jsonl").write_bytes(b"".join(lines))
    run(folder / "samples.jsonl", folder / "store", records_per_shard=4)
    return folder


def test_any_number_of_workers_gives_the_same_bytes(many, tmp_path):
    run(many / "samples.jsonl", tmp_path / "out", records_per_shard=4, workers=3)
    assert content(tmp_path / "out") == content(many / "store")


def test_chunks_only_divide_the_records(many, tmp_path):
    run(many / "samples.jsonl", tmp_path / "out", records_per_shard=1000)
    one, parts = content(tmp_path / "out"), content(many / "store")
    shards = sorted(name for name in parts if ".tfrecord-" in name)
    assert one[layout.shard_name(0, 1)] == b"".join(parts[name] for name in shards)
    assert gzip.decompress(one["dropped.jsonl.gz"]) == gzip.decompress(parts["dropped.jsonl.gz"])
    assert one["rejected.jsonl"] == parts["rejected.jsonl"]


# Python's audit events name every file that is opened, renamed or removed: so many moments.
KILLED = """
import os, random, signal, sys
from pathlib import Path
from cot_flax.store.prepare import prepare
from cot_flax.tasks.stories import VOCABULARY
from cot_flax.chains.preparation import Preparation

samples, folder, trials, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
MOMENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")

def run(out, moment):
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    seen = 0
    def kill(event, arguments):
        nonlocal seen
        ours = event != "open" or str(arguments[0]).startswith(str(folder))
        if event in MOMENTS and ours:
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(kill)
    prepare([samples], str(out), vocabulary=VOCABULARY, settings=Preparation(), workers=1,
            records_per_shard=4)
    (folder / "moments").write_text(str(seen))
    os._exit(0)

assert run(folder / "whole", None) == 0
moments = int((folder / "moments").read_text())
dice = random.Random(seed)
for trial in range(trials):
    out = folder / f"killed{trial}"
    # Anywhere in its share of the run; and once more on the way from there.
    first = 1 + (trial * moments + dice.randrange(moments)) // trials
    deaths = [run(out, first), run(out, dice.randrange(1, 20))]
    print(trial, first, deaths)
    assert deaths[0] == signal.SIGKILL and deaths[1] in (0, signal.SIGKILL)
    assert run(out, None) == 0
"""


def test_a_store_survives_kill_9_at_any_moment(many, tmp_path):
    seed, trials = 0, 8
    done = subprocess.run(
        [sys.executable, "-c", KILLED, many / "samples.jsonl", tmp_path, str(trials), str(seed)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = content(many / "store")
    for trial in range(trials):
        found = content(tmp_path / f"killed{trial}")
        assert {name: b for name, b in found.items() if not name.startswith("parts/")} == expected


def test_an_interrupted_run_goes_on_where_it_stopped(many, tmp_path):
    """Also with several processes; chunks that are done are not made again."""

    class Enough(Exception):
        pass

    def stop(tally):
        if tally.read >= 20:
            raise Enough

    with pytest.raises(Enough):
        run(many / "samples.jsonl", tmp_path / "out", records_per_shard=4, workers=2, progress=stop)
    with pytest.raises(UserError, match=r"no readable manifest\.json .*goes on where it stopped"):
        records(tmp_path / "out")
    parts = sorted((tmp_path / "out" / "parts").glob("*.tfrecord"))[:5]
    before = [part.stat().st_ino for part in parts]
    run(many / "samples.jsonl", tmp_path / "out", records_per_shard=4)
    assert content(tmp_path / "out") == content(many / "store")
    shards = [tmp_path / "out" / layout.shard_name(i, 25) for i in range(5)]
    assert [shard.stat().st_ino for shard in shards] == before


def stamps(out):
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir()}


def test_a_finished_store_is_left_as_it_is(tmp_path, samples):
    path = written(tmp_path / "samples.jsonl", samples)
    first = run(path, tmp_path / "out")
    before = stamps(tmp_path / "out")
    seen = []
    assert run(path, tmp_path / "out", progress=seen.append, workers=2) == first
    assert seen == []
    assert stamps(tmp_path / "out") == before


def test_the_same_chains_have_one_fingerprint_whenever_they_were_written(tmp_path, samples):
    stores = [str(tmp_path / name) for name in ("first", "second", "other")]
    for seconds, store in enumerate(stores[:2]):
        path = written(tmp_path / "samples.jsonl", samples)
        os.utime(path, (seconds, seconds))
        run(path, store)
    run(written(tmp_path / "fewer.jsonl", samples[:-1]), stores[2])
    first, second, other = map(layout.fingerprint, stores)
    assert first == second != other != "" == layout.fingerprint(str(tmp_path))


def test_a_finished_store_without_a_readable_manifest_is_made_again(tmp_path, samples):
    path = written(tmp_path / "samples.jsonl", samples)
    run(path, tmp_path / "out")
    whole = content(tmp_path / "out")
    (tmp_path / "out" / "manifest.json").write_text("{")
    run(path, tmp_path / "out")
    assert content(tmp_path / "out") == whole


@pytest.mark.parametrize("change", ["settings", "input", "shards"])
def test_another_plan_replaces_the_store_if_told_to_and_nothing_else(tmp_path, samples, change):
    path = written(tmp_path / "samples.jsonl", samples)
    run(path, tmp_path / "out", records_per_shard=4)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    options = {"records_per_shard": 4}
    if change == "settings":
        options["settings"] = Preparation(top_k=2)
    elif change == "input":
        write_samples(path, samples[:-2])
    else:
        options["records_per_shard"] = 100
    before = content(tmp_path / "out")
    differs = {
        "settings": "settings.top_k 5 instead of 2",
        "input": "inputs",
        "shards": "records_per_shard",
    }
    kept = layout.read_manifest(str(tmp_path / "out"))["kept"]
    message = rf"another finished store in .*out: {kept} chains of samples\.jsonl \(it differs in "
    with pytest.raises(UserError, match=rf"{message}{differs[change]}\).*--overwrite") as caught:
        run(path, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert content(tmp_path / "out") == before
    run(path, tmp_path / "new", **options)
    run(path, tmp_path / "out", overwrite=True, **options)
    assert content(tmp_path / "out") == content(tmp_path / "new") | {"notes.txt": b"mine"}


def test_an_unfinished_store_of_another_plan_is_begun_anew(many, tmp_path):
    def stop(tally):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            many / "samples.jsonl",
            tmp_path / "out",
            records_per_shard=4,
            settings=Preparation(top_k=3),
            progress=stop,
        )
    run(many / "samples.jsonl", tmp_path / "out", records_per_shard=4)
    assert content(tmp_path / "out") == content(many / "store")


def test_two_folders_can_be_told_apart_by_their_plans(many):
    plan = layout.read_manifest(str(many / "store"))["plan"]
    assert plan["vocabulary"] == fingerprint(VOCABULARY)
    ((name, size, _),) = plan["inputs"]
    assert (name, size) == (
        str(many / "samples.jsonl"),
        (many / "samples.jsonl").stat().st_size,
    )


@pytest.fixture
def like_t5(tmp_path):
    """A vocabulary without some characters, as T5's."""
    (tmp_path / "like_t5.model").write_bytes(world_without("<{}\\^~"))
    return seqio.SentencePieceVocabulary(str(tmp_path / "like_t5.model"))


def shifted(sample):
    """With the rows of the place behind, as llama-cpp-python's echo has them."""
    own, first = sample.logprobs, sample.logprobs.top_logprobs[0]
    tops = [dict(top) for top in (*own.top_logprobs[1:], first)]
    for token, top in zip(own.tokens, tops, strict=True):
        top.setdefault(token, -11.0)
    values = [top[token] for token, top in zip(own.tokens, tops, strict=True)]
    found = dataclasses.replace(own, token_logprobs=tuple(values), top_logprobs=tuple(tops))
    teacher = {"model": "story", "params": {"recipe": "fu2023", "scored_by": "scorer"}}
    return dataclasses.replace(sample, logprobs=found, teacher=teacher)


def test_log_probabilities_of_other_places_stop_the_run(tmp_path):
    right = list(make_samples(make_stories(20, split="train", seed=4), samples=1, seed=4))
    others = make_samples(make_stories(20, split="train", seed=5), samples=1, seed=5)
    numbered = [dataclasses.replace(sample, id=f"other-{sample.id}") for sample in others]
    path = written(tmp_path / "samples.jsonl", [*right, *map(shifted, numbered)])
    message = (
        r"got log-probabilities of story \(fu2023\), scored by scorer: \d+\.\d+ nats a token, of "
        r"[\d,]+ tokens, \d\.\d% are the likeliest there; expected at most 6 nats and at least 15%"
        r".*rescore.*--max-nats"
    )
    with pytest.raises(UserError, match=message):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out" / "COMPLETED").exists()
    tally = run(path, tmp_path / "out", max_nats=20, min_likeliest=0)
    assert "log-probabilities of story (fu2023), scored by scorer" in tally.summary()
    run(written(tmp_path / "right.jsonl", right), tmp_path / "right")


def smol(shared_data):
    """SmolLM2-135M on human chains."""
    path = shared_data / "teacher" / "smollm2_gsm8k_train_top5.jsonl"
    return [json.loads(line)["logprobs"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_chains_drawn_at_a_temperature_pass(shared_data, temperature):
    """Of SmolLM2's own top 5 at every place one is drawn; the value is the untempered one."""
    draw, total = random.Random(0), Tally()
    for found in smol(shared_data):
        tops = found["top_logprobs"]
        drawn = [
            draw.choices(list(top), [math.exp(value / temperature) for value in top.values()])[0]
            for top in tops
        ]
        values = tuple(top[token] for top, token in zip(tops, drawn, strict=True))
        total.add_scores("smol", Logprobs(tuple(drawn), values, tuple(tops)))
    assert total.scored["smol"] > 25_000
    stop_if_unlikely(total, max_nats=6.0, min_likeliest=0.15)
    assert 0.55 < total.likeliest["smol"] / total.ranked["smol"] < 0.8


def test_codex_chains_and_human_ones_pass(shared_data):
    total = Tally()
    for sample in read_codex_dump(shared_data / "teacher" / "gsm8k_train_codex_top5.jsonl"):
        total.add_scores("codex", sample.logprobs)
    for found in smol(shared_data):
        columns = (found["tokens"], found["token_logprobs"], found["top_logprobs"])
        total.add_scores("human", Logprobs(*map(tuple, columns)))
    stop_if_unlikely(total, max_nats=6.0, min_likeliest=0.15)
    share = {name: total.likeliest[name] / total.ranked[name] for name in total.ranked}
    assert share == pytest.approx({"codex": 0.92, "human": 0.67}, abs=0.01)
    assert total.nats("human") == pytest.approx(1.32, abs=0.01)


def test_an_echo_of_llama_cpp_python_does_not():
    path = Path(__file__).parents[1] / "fixtures/servers/llama_cpp_python_0.3.36_echo_shifted.json"
    found = json.loads(path.read_text(encoding="utf-8"))["response"]["choices"][0]["logprobs"]
    columns = (found["tokens"], found["token_logprobs"], found["top_logprobs"])
    total = Tally()
    for _ in range(3):  # the file has 14 places
        total.add_scores("llama", Logprobs(*(tuple(column[1:]) for column in columns)))
    with pytest.raises(UserError, match=r"llama: 9\.30 nats a token, of 42 tokens, 7\.1%"):
        stop_if_unlikely(total, max_nats=6.0, min_likeliest=0.15)


def test_unknown_characters_of_questions_stop_the_run_too(tmp_path, make_sample, like_t5):
    questions = ["1 < 2?", "2?", "3?", "4?"]
    chains = [make_sample("So 2.", question=question, id=question) for question in questions]
    path = written(tmp_path / "samples.jsonl", chains)
    message = (
        r"got 25\.0% of the questions with characters that .*lacks: 1 \(< 1\); expected at most "
        r"24\.0%; take a student that has them \(of bytes: models/byt5_small\.gin; of mT5's pieces"
    )
    with pytest.raises(UserError, match=message):
        run(path, tmp_path / "out", vocabulary=like_t5, max_unknown_chains=0.24)
    tally = run(path, tmp_path / "out", vocabulary=like_t5, max_unknown_chains=0.25)
    assert "unknown to the vocabulary in 1 questions: 1 (< 1)" in tally.summary()


def test_unknown_characters_stop_the_run_and_are_counted_by_character(
    tmp_path, make_sample, like_t5
):
    texts = ["1 < 2, so \\boxed{2}.", "1 + 1 = 2.", "1 + 1 makes naïvely 2.", "是 2", "So 2."]
    chains = [make_sample(text, sample=n) for n, text in enumerate(texts)]
    path = written(tmp_path / "samples.jsonl", chains)
    message = (
        r"got 40\.0% of the chains with characters that .* vocabulary lacks: 2 \(ï 1, 是 1\); "
        r"expected at most 39\.0%; .* or raise --max-unknown-chains"
    )
    with pytest.raises(UserError, match=message):
        run(path, tmp_path / "out", vocabulary=like_t5, max_unknown_chains=0.39)
    assert not (tmp_path / "out" / "COMPLETED").exists()
    tally = run(path, tmp_path / "out", vocabulary=like_t5, max_unknown_chains=0.4)
    assert tally.fates == {"kept": 4, "unknown_characters": 1}
    assert tally.summary().splitlines()[:5] == [
        "5 read = 4 kept + 1 dropped + 0 rejected",
        "dropped: unknown_characters 1",
        "replaced in the targets: 2 (< 1, \\boxed 1)",
        "unknown to the vocabulary in 1 targets: 1 (ï 1)",
        "unknown to the vocabulary in dropped chains: 1 (是 1)",
    ]
    counted = layout.read_manifest(str(tmp_path / "out"))["tally"]
    assert (counted["unknown"], counted["unknown_dropped"]) == ({"ï": 1}, {"是": 1})
    targets = [like_t5.decode(record["targets"].tolist()) for record in records(tmp_path / "out")]
    assert targets[0] == "1 less than 2, so 2. The answer is 2"


@pytest.fixture(scope="module")
def t5(shared_data):
    return seqio.SentencePieceVocabulary(str(shared_data / "t5_vocab" / "spiece.model"))


@pytest.mark.parametrize(
    ("name", "kind"), [("qasc_train", "choice"), ("sensemaking_train", "choice")]
)
def test_flans_rationales(shared_data, tmp_path, t5, name, kind):
    """Every line is kept; a target is the rationale closed by the answer."""
    path = shared_data / "flan_cot" / f"{name}.tsv"
    settings = Preparation(Filters(rules="none", answer_kind=kind))
    tally = run(path, tmp_path / "out", settings=settings, vocabulary=t5)
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert (tally.read, tally.kept, tally.one_hot_chains) == (len(rows),) * 3
    for i, (record, row) in enumerate(zip(records(tmp_path / "out")[:50], rows[:50], strict=True)):
        question, answer, chain = (column.replace("\\n", "\n") for column in row)
        assert record["id"].decode() == f"{name}-{i + 1}/0"
        assert record["question"].decode() == question
        assert record["answer"].decode() == answer
        text = f"{chain.strip()}\nThe answer is {answer}"
        assert record["targets"].tolist() == [*t5.encode(text), 1]
        assert record["first"] == 1


def test_each_file_of_a_mixture_gets_its_own_rules(tmp_path):
    """A samples file is judged, and a rationale that somebody wrote is not, in either order."""
    (sample,) = make_samples(make_stories(1, split="train"), samples=1)
    wrong = dataclasses.replace(sample, text="No idea.", logprobs=None)
    judged = written(tmp_path / "asked.jsonl", [wrong])
    given = tmp_path / "given_train.tsv"
    given.write_text("One and one?\t2\tNobody knows.\n")
    settings = Preparation(Filters(rules="own"), max_unknown=1.0)
    for out, inputs in (("a", [judged, given]), ("b", [given, judged])):
        tally = run(inputs, tmp_path / out, settings=settings, max_unknown_chains=1.0)
        assert tally.fates == {"kept": 1, "no_answer": 1}
        assert [record["question"].decode() for record in records(tmp_path / out)] == [
            "One and one?"
        ]
