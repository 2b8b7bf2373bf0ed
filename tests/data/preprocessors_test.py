import dataclasses
import itertools

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

from cot_flax.data import preprocessors
from cot_flax.text.prompts import FORMATS, Exemplar, build_input, build_target, is_few_shot
from cot_flax.text.templates import TEMPLATES

PROMPTING = "cot_flax.data.registration.prompting"


def read(task, split="train", *, shuffle=False, seed=0, lengths=None, shard=None):
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        sequence_length=lengths, split=split, shuffle=shuffle, seed=seed, shard_info=shard
    )
    return list(dataset.as_numpy_iterator())


def prompts(examples):
    return {e["id"].decode(): e["inputs_pretokenized"].decode() for e in examples}


def shown_exemplars(prompt, question, format, records, template, shots):
    """The ways to write the prompt with that many training items."""
    pool = [Exemplar(r["question"], r["rationale"], r["answer"]) for r in records]
    return [
        chosen
        for chosen in itertools.permutations(pool, shots)
        if build_input(question, format, chosen, TEMPLATES[template]) == prompt
    ]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_prompts_and_targets_are_those_of_prompts_py(add_sums, sums, format, template):
    add_sums()
    gin.bind_parameter(f"{PROMPTING}.template", template)
    gin.bind_parameter(f"{PROMPTING}.shots", 2)
    shots = 2 if is_few_shot(format) else 0
    examples = read(f"sums_{format}", "test")
    assert len(examples) == len(sums["test"])
    for e, record in zip(examples, sums["test"], strict=True):
        prompt = e["inputs_pretokenized"].decode()
        found = shown_exemplars(prompt, record["question"], format, sums["train"], template, shots)
        assert len(found) == 1
        target = (record["rationale"], record["answer"], format, TEMPLATES[template])
        target = build_target(*target)
        assert e["targets_pretokenized"].decode() == target


def test_tokens_are_the_texts_closed_by_eos(add_sums, vocabulary):
    add_sums()
    for e in read("sums_zero_shot_cot"):
        for side in ("inputs", "targets"):
            *tokens, last = e[side].tolist()
            assert last == 1
            assert 1 not in tokens
            text = e[f"{side}_pretokenized"].decode()
            assert vocabulary.decode(tokens) == text.replace("\n", " ")


@pytest.mark.parametrize("format", ["few_shot_cot", "few_shot_answer"])
def test_an_item_is_never_its_own_exemplar(add_sums, sums, format):
    add_sums()
    gin.bind_parameter(f"{PROMPTING}.shots", 4)  # all the others
    for e, record in zip(read(f"sums_{format}"), sums["train"], strict=True):
        prompt = e["inputs_pretokenized"].decode()
        for other in sums["train"]:
            assert prompt.count(f"Q: {other['question']}") == 1
        assert prompt.rindex("Q: ") == prompt.index(f"Q: {record['question']}")


def test_exemplars_depend_on_neither_order_nor_shard_nor_process(add_sums):
    add_sums()
    add_sums("again")  # a new pool
    gin.bind_parameter(f"{PROMPTING}.shots", 3)
    expected = prompts(read("sums_few_shot_cot"))
    assert len(expected) == 5
    assert prompts(read("again_few_shot_cot")) == expected
    for seed in (1, 2):
        shuffled = read("sums_few_shot_cot", shuffle=True, seed=seed)
        assert prompts(shuffled) == expected
    shards = [
        prompts(read("sums_few_shot_cot", shard=seqio.ShardInfo(index=i, num_shards=2)))
        for i in range(2)
    ]
    assert not shards[0].keys() & shards[1].keys()
    assert shards[0] | shards[1] == expected


def test_the_seed_draws_other_exemplars(add_sums):
    add_sums()
    gin.bind_parameter(f"{PROMPTING}.shots", 3)
    first = prompts(read("sums_few_shot_cot"))
    gin.bind_parameter(f"{PROMPTING}.seed", 1)
    assert prompts(read("sums_few_shot_cot")) != first


def test_examples_that_do_not_fit_are_dropped_and_none_is_cut(add_sums):
    add_sums()
    everything = read("sums_zero_shot_cot")
    sizes = [len(e["inputs"]) for e in everything]
    limit = sorted(set(sizes))[-2]  # all but the longest
    kept = read("sums_zero_shot_cot", lengths={"inputs": limit, "targets": 100})
    expected = [e for e, size in zip(everything, sizes, strict=True) if size <= limit]
    assert 0 < len(kept) == len(expected) < len(everything)
    for ours, whole in zip(kept, expected, strict=True):
        np.testing.assert_array_equal(ours["inputs"], whole["inputs"])
    longest = max(len(e["targets"]) for e in everything)
    lengths = {"inputs": 100, "targets": longest - 1}
    assert len(read("sums_zero_shot_cot", lengths=lengths)) < len(everything)


def test_a_repeated_data_set_in_which_nothing_fits_stops(add_sums, monkeypatch):
    """T5X repeats a data set before these preprocessors, and would search it for ever."""
    add_sums()
    monkeypatch.setattr(preprocessors, "MOST_DROPPED", 7)
    task = seqio.get_mixture_or_task("sums_zero_shot_cot")
    lengths = {"inputs": 3, "targets": 99}
    assert list(task.get_dataset(lengths, "train", num_epochs=1).as_numpy_iterator()) == []
    endless = task.get_dataset(lengths, "train", num_epochs=None)
    with pytest.raises(tf.errors.InvalidArgumentError, match="got 7 examples in a row longer than"):
        next(iter(endless))


def test_stored_chains_are_the_targets_with_their_rows(bound_store, samples, vocabulary):
    by_id = {f"{s.id}/{s.sample}": s for s in samples}
    examples = read("stories_teacher_zero_shot_cot")
    assert len(examples) > 10
    for e in examples:
        sample = by_id[e["id"].decode()]
        assert vocabulary.decode(e["targets"].tolist()) == sample.text.replace("\n", " ")
        assert e["inputs_pretokenized"].decode() == build_input(sample.question, "zero_shot_cot")
        assert e["teacher_top_ids"].shape == e["teacher_top_logprobs"].shape
        assert e["teacher_top_ids"].shape == (len(e["targets"]), 5)


def test_every_row_is_the_teachers_or_one_hot_on_the_target(bound_store):
    gin.bind_parameter("cot_flax.tasks.stories.size.train", 40)
    soft = 0
    for e in read("stories_teacher_few_shot_cot"):
        for own, ids, logprobs in zip(
            e["targets"], e["teacher_top_ids"], e["teacher_top_logprobs"], strict=True
        ):
            mass = np.sum(np.exp(logprobs), where=ids >= 0)
            assert own in ids  # the teacher sampled it, and five entries hold all here
            # The root of a probability is off by half a 65,535th: five equal ones move most.
            assert 0 < mass <= 1 + np.sqrt(5) / 65535
            soft += np.sum(ids >= 0) > 1
        assert (ids.tolist(), logprobs.tolist()) == ([1, -1, -1, -1, -1], [0.0] * 5)  # EOS
    assert soft > 20


def test_a_stored_chain_without_logprobs_has_empty_rows(make_store, samples):
    bare = [dataclasses.replace(s, logprobs=None) for s in samples]
    gin.bind_parameter("cot_flax.tasks.stories.teacher_store.directory", make_store(bare))
    for e in read("stories_teacher_zero_shot_cot"):
        for name, absent in (("teacher_top_ids", -1), ("teacher_top_logprobs", 0)):
            np.testing.assert_array_equal(e[name], np.full((len(e["targets"]), 5), absent))


def test_answer_formats_take_one_chain_a_question_and_no_rows(bound_store):
    chains = read("stories_teacher_zero_shot_cot")
    answers = read("stories_teacher_zero_shot_answer")
    questions = [e["question"] for e in chains]
    assert len(set(questions)) < len(questions)
    assert [e["question"] for e in answers] == list(dict.fromkeys(questions))
    for e in answers:
        assert e["targets_pretokenized"].decode() == f"The answer is {e['answer'].decode()}"
        assert e["teacher_top_ids"].shape == (len(e["targets"]), 5)
        assert np.all(e["teacher_top_ids"] == -1)


def test_a_vocabulary_that_takes_one_text_at_a_time(add_sums, sums):
    add_sums(vocabulary=seqio.ByteVocabulary())
    examples = read("sums_zero_shot_answer")
    for e, record in zip(examples, sums["train"], strict=True):
        *tokens, last = e["targets"].tolist()
        text = build_target(record["rationale"], record["answer"], "zero_shot_answer")
        assert (tokens, last) == ([3 + byte for byte in text.encode()], 1)
