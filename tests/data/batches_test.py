import dataclasses
import itertools
import math
import os
import re
import subprocess
import sys
from collections import Counter

import gin
import numpy as np
import pytest
import seqio
from seqio import ShardInfo
from support.tokenizers import byte_level, world_without

from cot_flax.data.batches import TaskBatches
from cot_flax.data.features import TokenizerVocabulary, fingerprint
from cot_flax.data.mixtures import find_task
from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import records_source
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.objectives.losses import Objective
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.text.prompts import FORMATS
from cot_flax.text.tokenizers import open_tokenizer

LAYOUT = EncoderDecoder()
WIDE = {"inputs": 240, "targets": 90}


@pytest.fixture(autouse=True)
def _small_world():
    for split in ("train", "validation", "test"):
        gin.bind_parameter(f"cot_flax.tasks.stories.size.{split}", 20)
    gin.bind_parameter("cot_flax.data.registration.prompting.shots", 1)


def make(name="stories_zero_shot_cot", **settings):
    return TaskBatches(name, **{"feature_lengths": WIDE, "batch_size": 3} | settings)


def take(batches, n, skip=0):
    return list(itertools.islice(batches.batches(LAYOUT, skip * batches.batch_size), n))


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("pack", [False, True])
def test_the_same_batches_every_time_and_skipped_ones_are_just_left_out(pack):
    batches = make(pack=pack, seed=3)
    first = take(batches, 9)
    assert_equal(take(batches, 9), first)  # one object, asked twice
    assert_equal(take(make(pack=pack, seed=3), 4, skip=5), first[5:])


def test_a_mixture_is_resumed_exactly():
    first = take(make("stories_cot_mix", pack=True, seed=3), 5)
    assert_equal(take(make("stories_cot_mix", pack=True, seed=3), 2, skip=3), first[3:])


@pytest.mark.parametrize(
    ("shards", "pack"),
    [
        (1, False),
        (2, True),
        pytest.param(1, True, marks=pytest.mark.slow),
        pytest.param(2, False, marks=pytest.mark.slow),
    ],
)
def test_with_another_batch_size_it_goes_on_with_the_next_row(pack, shards):
    """After 3 batches of 4 rows, batches of 6 hold what batches of 2 hold from the 7th on."""
    settings = {"pack": pack, "seed": 3, "shards": shards}
    name = "stories_cot_mix"
    small = take(make(name, batch_size=2 * shards, **settings), 12, skip=0)
    (large,) = itertools.islice(
        make(name, batch_size=6 * shards, **settings).batches(LAYOUT, 12 * shards), 1
    )
    for key, rows in large.items():
        parts = [batch[key].reshape(shards, 2, *rows.shape[1:]) for batch in small[6:9]]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1).reshape(rows.shape), rows)


def formats_of(batch, microbatches):
    """Of each micro-batch, as the trainer takes a batch apart, the formats that its rows have."""
    vocabulary = find_task("stories_cot_mix").output_features["inputs"].vocabulary

    def format_of(ids):
        text = vocabulary.decode(ids[ids > 0].tolist())
        shots = "few_shot" if text.count("Q:") > 1 else "zero_shot"
        return f"{shots}_cot" if text.endswith("step by step") else f"{shots}_answer"

    segments = batch.get("encoder_segment_ids", batch["encoder_input_tokens"] > 0)
    rows = [
        [format_of(ids[of == n]) for n in range(1, of.max() + 1)]
        for ids, of in zip(batch["encoder_input_tokens"], segments.astype(int), strict=True)
    ]
    return [set(itertools.chain(*rows[m::microbatches])) for m in range(microbatches)]


PARTS = {"batch_size": 8, "microbatches": 4, "by_task": True, "seed": 3}


@pytest.mark.parametrize(("pack", "shards"), [(False, 2), (True, 1)])
def test_a_micro_batch_is_of_one_task_in_the_shares_of_the_mixture(pack, shards):
    found = Counter()
    for batch in take(make("stories_cot_mix", pack=pack, shards=shards, **PARTS), 50):
        for formats in formats_of(batch, 4):
            (format,) = formats
            found[format] += 1
    # Of 200 draws at shares of 0.4, 0.4, 0.1 and 0.1, within three standard deviations.
    for name, share in dict(zip(FORMATS, (0.4, 0.4, 0.1, 0.1), strict=True)).items():
        away = abs(found[name] - 200 * share)
        assert away < 3 * math.sqrt(200 * share * (1 - share)), (name, found)


def test_without_it_a_micro_batch_mixes_tasks():
    mixed = take(make("stories_cot_mix", **PARTS | {"by_task": False}), 5)
    assert any(len(formats) > 1 for batch in mixed for formats in formats_of(batch, 4))


@pytest.mark.parametrize("pack", [False, True])
def test_micro_batches_of_one_task_are_resumed_and_shared_out_exactly(pack):
    """One host has the first shard of what the other goes on with whole."""
    tasks = {"stories_zero_shot_cot": 2, "stories_few_shot_answer": 1}
    batches = make(tasks, pack=pack, shards=2, **PARTS)
    whole = take(batches, 6)
    found = list(itertools.islice(batches.batches(LAYOUT, 4 * 8, [0]), 2))
    assert_equal(found, [{k: v[:4] for k, v in batch.items()} for batch in whole[4:]])
    assert_equal(take(batches, 2, skip=4), whole[4:])


def test_micro_batches_of_a_task_alone_are_its_batches():
    settings = {"batch_size": 4, "shuffle": False}
    plain = take(make(**settings), 3)  # whose first two rows are the first micro-batch's
    ordered = [{name: rows[[0, 2, 1, 3]] for name, rows in batch.items()} for batch in plain]
    assert_equal(take(make(microbatches=2, by_task=True, **settings), 3), ordered)


def test_rows_that_do_not_make_whole_micro_batches_of_a_task_are_refused():
    message = "BATCH_SIZE 6 in 2 micro-batches of one task, with the data in 2 shards; .* of 4"
    with pytest.raises(UserError, match=message):
        make("stories_cot_mix", batch_size=6, microbatches=2, by_task=True, shards=2)


def test_a_task_of_which_nothing_fits_stops_micro_batches_of_its_own():
    lengths = {"inputs": 240, "targets": 8}  # the answer alone
    batches = make("stories_cot_mix", **PARTS | {"feature_lengths": lengths})
    with pytest.raises(UserError, match=r"1000 examples of stories_.*_cot, none within"):
        take(batches, 5)


def test_an_epoch_of_packed_micro_batches_is_counted_in_their_rows():
    """As many rows as it takes until as many examples were read as all tasks have."""
    tasks = {"stories_zero_shot_cot": 2, "stories_few_shot_answer": 1}
    batches = make(tasks, pack=True, **PARTS)
    examples, overlong, rows = batches.epoch(LAYOUT)
    assert (examples, overlong) == (40, 0)
    counts = []
    for batch in take(batches, 10):
        counts += batch["encoder_segment_ids"].max(axis=1).tolist()
    assert sum(counts[: rows - 1]) < 40 <= sum(counts[:rows])


def test_seeds_shuffle_differently():
    first, second = (take(make(seed=seed), 1)[0]["encoder_input_tokens"] for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_an_epoch_has_every_example_once():
    batches = make(batch_size=4, shuffle=False)
    rows = [tuple(row) for b in take(batches, 5) for row in b["encoder_input_tokens"]]
    assert len(set(rows)) == 20
    assert_equal(take(batches, 10)[5:], take(batches, 5))  # and then again, for ever


def test_rows_are_examples_with_their_teacher(bound_store, vocabulary):
    batches = make("stories_teacher_zero_shot_cot", shuffle=False)
    dataset = find_task(batches.mixture_or_task_name).get_dataset(
        sequence_length=None, split="train", shuffle=False
    )
    (batch,) = take(batches, 1)
    assert not {name for name in batch if "segment" in name or "position" in name}
    for b, e in enumerate(itertools.islice(dataset.as_numpy_iterator(), 3)):
        for name, side, values in (
            ("encoder_input_tokens", "inputs", e["inputs"]),
            ("decoder_target_tokens", "targets", e["targets"]),
            ("teacher_top_ids", "targets", e["teacher_top_ids"]),
            ("teacher_top_logprobs", "targets", e["teacher_top_logprobs"]),
        ):
            assert batch[name].shape[:2] == (3, WIDE[side])
            np.testing.assert_array_equal(batch[name][b, : len(values)], values)
            padding = -1 if name == "teacher_top_ids" else 0
            assert np.all(batch[name][b, len(values) :] == padding)


def test_packed_rows_hold_the_same_examples():
    packed = make(pack=True, shuffle=False, batch_size=2)
    alone = make(shuffle=False, batch_size=1)
    rows = [b["decoder_target_tokens"][0] for b in take(alone, 20)]
    whole = {tuple(row[row > 0]) for row in rows}
    found = []
    for batch in take(packed, 6):
        for row, ids in zip(
            batch["decoder_target_tokens"], batch["decoder_segment_ids"], strict=True
        ):
            found += [tuple(row[ids == segment]) for segment in range(1, ids.max() + 1)]
    assert len(found) > 12  # more examples than rows
    assert set(found) <= whole


def sums_of_lengths(vocabulary, *lengths):
    """A data set whose chains have that many words."""
    records = [
        {"id": str(i), "question": "One?", "rationale": " ".join(["1"] * n), "answer": "1"}
        for i, n in enumerate(lengths)
    ]
    source = records_source(lambda split: records, ["train"])
    add_cot_task("long", source, formats=("zero_shot_cot",), vocabulary=vocabulary)
    # The question, "Q:" and the instruction; the chain, "The answer is 1" and EOS.
    return lambda n: n + 4 + 1


@pytest.mark.parametrize("pack", [False, True])
def test_overlong_examples_are_counted_and_never_cut(vocabulary, pack):
    size = sums_of_lengths(vocabulary, 3, 9, 4, 5)
    batches = make(
        "long_zero_shot_cot",
        feature_lengths={"inputs": 30, "targets": size(5)},
        batch_size=1,
        pack=pack,
        shuffle=False,
    )
    assert batches.report() == ""
    found = take(batches, 6)
    lengths = {int(b["decoder_loss_weights"].sum()) for b in found}
    assert lengths == {size(3), size(4), size(5)}
    for b in found:
        (row,) = b["decoder_target_tokens"]
        assert row[row > 0][-1] == vocabulary.eos_id
    assert batches.report().startswith("left out ")
    left_out, seen = map(int, re.findall("([0-9]+) of ([0-9]+) examples", batches.report())[0])
    # Number 1 of four; the stream has been read up to the sixth that fits, and further to pack.
    assert left_out == seen // 4 + (seen % 4 > 1)
    assert pack or seen == 8
    assert "long_zero_shot_cot" in batches.report()
    assert f"inputs 30, targets {size(5)}" in batches.report()


def test_what_is_left_out_of_a_mixture_is_counted_by_task_with_what_remains():
    """Every zero-shot prompt fits, many few-shot ones do not."""
    zero_shot = (make(f"stories_zero_shot_{kind}")._examples(1) for kind in ("cot", "answer"))
    longest = max(len(example["inputs"]) for example in itertools.chain(*zero_shot))
    batches = make("stories_cot_mix", feature_lengths=WIDE | {"inputs": longest}, seed=1)
    take(batches, 40)
    report = batches.report()
    whole = re.match(
        r"left out ([\d,]+) of ([\d,]+) examples of stories_cot_mix: .*tokens; ", report
    )
    found = re.findall(
        r"stories_(\w+) ([\d,]+) of ([\d,]+) \(share ([\d.]+)%, without them ([\d.]+)%\)", report
    )
    counts = {name: (int(long), int(all)) for name, long, all, *_ in found}
    assert len(counts) == 4
    assert [sum(column) for column in zip(*counts.values(), strict=True)] == [
        *map(int, whole.groups())
    ]
    for name, (long, all) in counts.items():
        assert all > 0 and (long > 0) == name.startswith("few")
    read, left = sum(all for _, all in counts.values()), sum(a - b for b, a in counts.values())
    for name, long, all, before, after in found:
        assert float(before) == pytest.approx(100 * int(all) / read, abs=0.051), name
        assert float(after) == pytest.approx(100 * (int(all) - int(long)) / left, abs=0.051), name


def test_the_facts_of_a_stream():
    gin.bind_parameter("stories_cot_mix/cot_flax.data.registration.format_rates.few_shot_cot", 1.4)
    rates = {"few_shot_answer": 0.05, "few_shot_cot": 0.7}
    rates |= {"zero_shot_answer": 0.05, "zero_shot_cot": 0.2}
    facts = make("stories_cot_mix", pack=True, seed=3).facts
    assert facts.pop("rates") == pytest.approx({f"stories_{k}": v for k, v in rates.items()})
    same = {name: found["same"] for name, found in facts.pop("leaks").items()}
    assert same == {"stories/validation": 0, "stories/test": 0}
    assert facts.pop("prompts").keys() == {f"stories_{format}" for format in FORMATS}
    assert facts == {
        "mixture": "stories_cot_mix",
        "lengths": WIDE,
        "split": "train",
        "pack": True,
        "shuffle": True,
        "seed": 3,
        "cached": False,
        "by_task": None,
    }
    assert "rates" not in make().facts
    parts = make("stories_cot_mix", batch_size=6, microbatches=2, by_task=True)
    assert parts.facts["by_task"] == {"microbatches": 2, "rows": 3}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (
            {"few_shot_cot": -1.0},
            "stories_few_shot_cot -1; expected 0 or more, one of them above 0",
        ),
        (dict.fromkeys(FORMATS, 0), "stories_few_shot_answer 0, stories_few_shot_cot 0, .*"),
    ],
)
def test_rates_that_are_no_shares_are_named(rates, message):
    for name, rate in rates.items():
        place = f"stories_cot_mix/cot_flax.data.registration.format_rates.{name}"
        gin.bind_parameter(place, rate)
    with pytest.raises(UserError, match=f"mixing rates of stories_cot_mix: {message}"):
        make("stories_cot_mix").check(KL, 512)


def test_less_than_no_shards_are_refused():
    with pytest.raises(UserError, match="got DATA_SHARDS -1; expected 1 or more, or 0 for one a p"):
        make(shards=-1)


def test_shards_fill_their_rows_of_every_batch():
    """Whoever asks for some of them gets those rows; between them they have read everything."""
    batches = make(batch_size=3, shards=3, pack=True)
    whole = take(batches, 3)
    for chosen in ([1], [0, 2]):
        found = list(itertools.islice(batches.batches(LAYOUT, 3, chosen), 2))
        assert_equal(found, [{k: v[chosen] for k, v in batch.items()} for batch in whole[1:]])


@pytest.mark.parametrize("task", ["stories_zero_shot_cot", "stories_teacher_zero_shot_cot"])
def test_an_epoch_of_all_shards_is_an_epoch(task, bound_store):
    """Of 20 stories that nobody stored in files, and of a store of several."""

    def examples(shards):
        batches = make(task, batch_size=shards, shards=shards, shuffle=False)
        found = [
            [example["targets"].tolist() for example in batches._examples(1, ShardInfo(i, shards))]
            for i in range(shards)
        ]
        assert all(found)
        return found

    (whole,), parts = examples(1), examples(2)
    assert sorted(itertools.chain(*parts)) == sorted(whole)
    assert len(whole) > 10


def test_overlong_examples_of_all_shards_are_reported(vocabulary):
    size = sums_of_lengths(vocabulary, 3, 9, 4, 5)
    lengths = {"inputs": 30, "targets": size(5)}
    batches = make(
        "long_zero_shot_cot", feature_lengths=lengths, batch_size=2, shards=2, shuffle=False
    )
    take(batches, 6)  # shard 0 has 3 and 4 words, shard 1 has 9 and 5
    left_out, seen = map(int, re.findall("([0-9]+) of ([0-9]+) examples", batches.report())[0])
    assert (left_out, seen) == (6, 18)


def test_a_batch_that_the_shards_do_not_divide_is_refused():
    with pytest.raises(UserError, match=r"BATCH_SIZE 3 .*2 shards; expected a multiple of 2.*DATA"):
        make(shards=2)


def test_a_mixture_of_two_vocabularies_is_refused(vocabulary):
    records = [{"id": "1", "question": "1?", "rationale": "1", "answer": "1"}]
    source = records_source(lambda split: records, ["train"])
    formats = ("zero_shot_cot",)
    add_cot_task("bytes", source, formats=formats, vocabulary=seqio.ByteVocabulary())
    seqio.MixtureRegistry.add("both", ["bytes_zero_shot_cot", "stories_zero_shot_cot"], 1.0)
    with pytest.raises(UserError, match=r"both of bytes_.* and stories_.*; expected tasks of one"):
        make("both").check(Objective(), 512)


def test_targets_with_characters_that_the_vocabulary_lacks_are_counted(tmp_path):
    """One of three that fit; the fourth is left out."""
    (tmp_path / "v.model").write_bytes(world_without("<"))
    chains = ("1 < 2", "1", "2", "1 < 2 " * 9)
    records = [
        {"id": str(i), "question": "One?", "rationale": chain, "answer": "1"}
        for i, chain in enumerate(chains)
    ]
    vocabulary = seqio.SentencePieceVocabulary(str(tmp_path / "v.model"))
    source = records_source(lambda split: records, ["train"])
    add_cot_task("less", source, formats=("zero_shot_cot",), vocabulary=vocabulary)
    lengths = {"inputs": 40, "targets": 30}
    batches = make("less_zero_shot_cot", feature_lengths=lengths, batch_size=1, shuffle=False)
    take(batches, 3)
    found = "targets with characters that the vocabulary lacks, which are learnt as <unk>"
    assert batches.report() == f"{found}: less_zero_shot_cot 1 of 3"
    take(batches, 4)
    left_out = "left out 1 of 5 examples of less_zero_shot_cot: longer than inputs 40, targets 30"
    assert batches.report() == f"{left_out} tokens; {found}: less_zero_shot_cot 2 of 4"


def lacking(folder, name, questions, chains):
    """A task whose vocabulary has no `<`."""
    (folder / "v.model").write_bytes(world_without("<"))
    vocabulary = seqio.SentencePieceVocabulary(str(folder / "v.model"))
    records = [
        {"id": str(i), "question": question, "rationale": chain, "answer": "1"}
        for i, (question, chain) in enumerate(zip(questions, chains, strict=True))
    ]
    source = records_source(lambda split: records, ["train"])
    add_cot_task(name, source, formats=("zero_shot_cot",), vocabulary=vocabulary)


def test_inputs_with_characters_that_the_vocabulary_lacks_are_counted_too(tmp_path):
    lacking(tmp_path, "asked", ["1 < 2?", "1?", "2?"], "111")
    batches = make("asked_zero_shot_cot", feature_lengths=WIDE, batch_size=1, shuffle=False)
    take(batches, 3)
    found = "inputs with characters that the vocabulary lacks, which are read as <unk>"
    assert batches.report() == f"{found}: asked_zero_shot_cot 1 of 3"


@pytest.mark.parametrize("side", ["inputs", "targets"])
def test_texts_of_unknown_pieces_stop_before_training(tmp_path, side):
    texts = {"inputs": ["1"] * 4, "targets": ["1"] * 4} | {side: ["1", "1", "1", "< < < <"]}
    lacking(tmp_path, "odd", texts["inputs"], texts["targets"])
    settings = {"feature_lengths": WIDE, "batch_size": 1, "shuffle": False}
    batches = make("odd_zero_shot_cot", max_unknown=0.02, **settings)
    message = (
        rf"4 of [0-9]+ pieces \([0-9.]+%\) of the {side} of odd_.*expected at most 2\.0%; take a "
        r"student .*models/byt5_small\.gin.* or raise MAX_UNKNOWN_PIECES"
    )
    with pytest.raises(UserError, match=message):
        batches.check(Objective(), 512)
    make("odd_zero_shot_cot", max_unknown=1.0, **settings).check(Objective(), 512)


def test_no_report_where_all_fit():
    batches = make()
    take(batches, 3)
    assert batches.report() == ""


@pytest.mark.parametrize("side", ["inputs", "targets"])
def test_data_of_which_nothing_fits_stop_the_run(vocabulary, side):
    sums_of_lengths(vocabulary, 3, 9)
    batches = make("long_zero_shot_cot", feature_lengths=WIDE | {side: 4})
    with pytest.raises(UserError, match=f"none within .*'{side}': 4.*raise TASK_FEATURE_LENGTHS"):
        take(batches, 1)


def test_an_unknown_task_is_named_with_its_neighbours():
    with pytest.raises(UserError, match=r"'stories_zero_shot_cat'.*such as stories_zero_shot_cot"):
        make("stories_zero_shot_cat")
    with pytest.raises(UserError, match="task or mixture '#'; expected a registered name"):
        find_task("#")


def test_a_split_that_the_task_has_not_is_named(bound_store):
    with pytest.raises(
        UserError,
        match=r"split 'dev' of stories_teacher_.*one of \['test', 'train', 'validation'\]",
    ):
        make("stories_teacher_zero_shot_cot", split="dev")


def test_lengths_must_be_given_for_both_sides():
    with pytest.raises(UserError, match=r"lengths of inputs and targets; add \['targets'\]"):
        make(feature_lengths={"inputs": 9})


def test_the_vocabulary_is_the_tasks(vocabulary):
    assert make().vocabulary == fingerprint(vocabulary)


def test_the_files_of_the_vocabulary_are_its_tokenizers(tmp_path):
    assert make().vocabulary_files == {"spiece.model": VOCABULARY_PATH.read_bytes()}
    tokenizer = open_tokenizer(byte_level(tmp_path))
    records = [{"id": "1", "question": "1?", "rationale": "1", "answer": "1"}]
    source = records_source(lambda split: records, ["train"])
    vocabulary = TokenizerVocabulary(lambda: tokenizer)
    add_cot_task("bpe", source, formats=("zero_shot_cot",), vocabulary=vocabulary)
    for name, content in make("bpe_zero_shot_cot").vocabulary_files.items():
        (tmp_path / name).write_bytes(content)
    assert open_tokenizer(tmp_path).fingerprint == make("bpe_zero_shot_cot").vocabulary


def test_other_splits_and_no_shuffling():
    rows = [take(make(split=split, shuffle=False), 1)[0] for split in ("train", "test")]
    assert not np.array_equal(*(row["encoder_input_tokens"] for row in rows))


KL = Objective(kl_weight=1.0)


def test_kl_with_teacher_rows_passes(bound_store):
    make("stories_teacher_zero_shot_cot").check(KL, 512)
    make("stories_teacher_cot_mix").check(KL, 512)


def test_kl_of_a_task_without_teacher_is_refused():
    make().check(Objective(), 512)
    with pytest.raises(UserError, match=r"no teacher log-probabilities in stories_zero.*prepare"):
        make().check(KL, 512)


def test_a_store_in_seqios_cached_form_gives_the_same_batches(bound_store):
    task = "stories_teacher_zero_shot_cot"
    plain, cached = (
        list(itertools.islice(make(task, shuffle=False, use_cached=cached).batches(LAYOUT), 5))
        for cached in (False, True)
    )
    for one, other in zip(plain, cached, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
    # Shuffled too: every batch again, so that a run can be resumed.
    again = [
        next(make(task, use_cached=True).batches(LAYOUT))["decoder_target_tokens"] for _ in range(2)
    ]
    np.testing.assert_array_equal(*again)


def test_ids_without_a_row_in_the_model_are_refused(vocabulary):
    ids = vocabulary.vocab_size
    make().check(Objective(), ids)
    with pytest.raises(UserError, match=rf"{ids} ids for a model of {ids - 1} rows"):
        make().check(Objective(), ids - 1)


@pytest.mark.parametrize("logprobs", ["none", "certain"])
def test_kl_is_refused_where_the_store_says_nothing_about_the_teacher(
    make_store, samples, logprobs
):
    def without(sample):
        if logprobs == "none":
            return dataclasses.replace(sample, logprobs=None)
        n = len(sample.logprobs.tokens)
        empty = dataclasses.replace(
            sample.logprobs, token_logprobs=(0.0,) * n, top_logprobs=({},) * n
        )
        return dataclasses.replace(sample, logprobs=empty)

    folder = make_store(map(without, samples))
    gin.bind_parameter("cot_flax.tasks.stories.teacher_store.directory", folder)
    batches = make("stories_teacher_zero_shot_cot")
    batches.check(Objective(), 512)
    with pytest.raises(UserError, match="no teacher log-probabilities"):
        batches.check(KL, 512)


def test_a_stream_that_is_still_open_does_not_hang_the_interpreter():
    script = """
import gin
from cot_flax.tasks import stories
from cot_flax.data.batches import TaskBatches
from cot_flax.students import layouts
gin.bind_parameter("cot_flax.tasks.stories.size.train", 9)
data = TaskBatches("stories_zero_shot_cot", {"inputs": 99, "targets": 99}, 4)
stream = data.batches(layouts.EncoderDecoder())
print(next(stream)["encoder_input_tokens"].shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stdout) == (0, "(4, 99)\n")
