import itertools

import gin
import jax
import pytest
import seqio
import tensorflow as tf

from cot_flax.data.batches import TaskBatches
from cot_flax.data.features import TEACHER_FEATURES, special_ids
from cot_flax.data.mixtures import find_task, microbatch_shares, mixture, task_names
from cot_flax.data.registration import cot_task
from cot_flax.data.sources import records_source
from cot_flax.errors import UserError
from cot_flax.objectives.losses import Objective
from cot_flax.students.layouts import EncoderDecoder
from cot_flax.students.student import build
from cot_flax.students.t5 import T5Config
from cot_flax.training import resume, step

PROMPTING = "cot_flax.data.registration.prompting"
TAUGHT = "stories_teacher_zero_shot_cot"
LENGTHS = {"inputs": 96, "targets": 72}


@pytest.fixture(autouse=True)
def _one_shot():
    gin.bind_parameter(f"{PROMPTING}.shots", 1)


@pytest.fixture
def plain(vocabulary):
    """A task of SeqIO alone."""
    pair = {"inputs": "What?", "targets": "It is nine"}
    seqio.TaskRegistry.add(
        "plain",
        source=records_source(lambda split: [pair], ["train"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={name: seqio.Feature(vocabulary) for name in ("inputs", "targets")},
    )
    return "plain"


@pytest.fixture
def narrow():
    """A teacher's task of two entries a position, where the stores of tests have five."""
    task = find_task(TAUGHT)
    example = {"inputs": [7, 1], "targets": [9, 1]}
    rows = {"teacher_top_ids": [[9, 8], [1, 3]]}
    logprobs = {"teacher_top_logprobs": [[-0.25, -2.0], [-0.5, -1.0]]}

    def read(split):
        def give():
            yield example | rows | logprobs

        types = dict.fromkeys(example | rows, tf.int32) | dict.fromkeys(logprobs, tf.float32)
        shapes = dict.fromkeys(example, (2,)) | dict.fromkeys(rows | logprobs, (2, 2))
        signature = {name: tf.TensorSpec(shapes[name], types[name]) for name in types}
        return tf.data.Dataset.from_generator(give, output_signature=signature)

    seqio.TaskRegistry.add(
        "narrow",
        source=seqio.FunctionDataSource(
            lambda split, shuffle_files, seed=None: read(split), splits=["train"]
        ),
        preprocessors=[],
        output_features=task.output_features,
    )
    return "narrow"


def shares(name):
    provider = seqio.MixtureRegistry.get(name)
    return {task.name: provider.get_rate(task) for task in provider.tasks}


def take(tasks, n, **settings):
    data = TaskBatches(tasks, LENGTHS, **{"batch_size": 4} | settings)
    return list(itertools.islice(data.batches(EncoderDecoder()), n))


# Names --------------------------------------------------------------------------------------------


def test_a_name_alone_is_itself(add_sums):
    add_sums()
    for tasks in ("sums_cot_mix", ["sums_cot_mix"], {"sums_cot_mix": 3}):
        assert mixture(tasks) == "sums_cot_mix"


def test_the_same_parts_have_one_name_and_others_another(add_sums):
    add_sums()
    add_sums("more")
    a, b = "sums_zero_shot_cot", "more_zero_shot_cot"
    name = mixture({a: 2, b: 1})
    assert name == mixture({b: 0.5, a: 1.0}) == f"{b}:1:{a}:2"
    assert mixture([a, b]) == mixture({b: 7, a: 7}) == f"{b}:{a}"
    assert mixture({a: 1, b: 2}) != name
    assert mixture({a: 1e-9, b: 1}) == f"{b}:1e09:{a}:1"  # SeqIO allows neither + nor -
    long = mixture({f"{set}_{form}": 1 for set in ("sums", "more") for form in FOUR})
    assert long.startswith("mixture_of_8_") and len(shares(long)) == 8


FOUR = ("zero_shot_cot", "few_shot_cot", "zero_shot_answer", "few_shot_answer")


def test_a_name_of_ones_own_can_be_given_to_other_parts(add_sums):
    """In a notebook the next experiment has the same name."""
    add_sums()
    assert mixture({"sums_zero_shot_cot": 1}, name="own") == "own"
    mixture({"sums_zero_shot_answer": 2}, name="own")
    assert shares("own") == {"sums_zero_shot_answer": 2.0}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"sums_cot_mix": 0}, "rate 0 of sums_cot_mix; expected a number above 0"),
        ({"sums_cot_mix": -1.5}, "rate -1.5 of sums_cot_mix"),
        ({"sums_cot_mix": float("nan")}, "rate nan of sums_cot_mix"),
        ({"sums_cot_mix": float("inf")}, "rate inf of sums_cot_mix"),
        ({"sums_cot_mix": True}, "rate True of sums_cot_mix"),
        ({"sums_cot_mix": "2"}, "rate '2' of sums_cot_mix"),
        ({"sums_cot_max": 1}, "task or mixture 'sums_cot_max'; .* such as sums_cot_mix"),
        (["sums_cot_mix", "sums_cot_mix"], r"sums_cot_mix twice in \["),
        ([], r"MIXTURE_OR_TASK_NAME \[\]; expected a name, a list of names, or a dict"),
        ({}, r"MIXTURE_OR_TASK_NAME \{\}"),
        ([["sums_cot_mix"]], r"MIXTURE_OR_TASK_NAME \[\["),
        (None, "MIXTURE_OR_TASK_NAME None"),
    ],
)
def test_what_is_no_mixture_is_said_in_one_line(add_sums, tasks, message):
    add_sums()
    for function in (mixture, task_names, lambda given: TaskBatches(given, LENGTHS, 4)):
        with pytest.raises(UserError, match=message):
            function(tasks)


@pytest.mark.parametrize("name", ["sums_cot_mix", "sums_zero_shot_cot", "two words"])
def test_a_name_that_cannot_be_had(add_sums, name):
    add_sums()
    with pytest.raises(UserError, match=f"{name!r} as the name of a mixture"):
        mixture({"sums_zero_shot_cot": 1}, name=name)


# Shares -------------------------------------------------------------------------------------------


def test_inner_shares_stay(add_sums, plain):
    """0.4, 0.4, 0.1 and 0.1 of one half; what is named itself, too, has the sum."""
    add_sums()
    name = mixture({"sums_cot_mix": 2, "plain": 1, "sums_zero_shot_cot": 1})
    found = shares(name)
    assert found["plain"] == 1
    assert found["sums_zero_shot_cot"] == pytest.approx(2 * 0.4 + 1)
    assert found["sums_few_shot_cot"] == pytest.approx(0.8)
    outer = shares(mixture({name: 3, "plain": 1}))
    assert outer["sums_few_shot_cot"] == pytest.approx(3 * 0.8 / 4)
    assert outer["plain"] == pytest.approx(3 * 1 / 4 + 1)


def test_inner_rates_are_those_that_gin_binds_later(add_sums, plain):
    add_sums()
    name = mixture({"sums_cot_mix": 1, "plain": 1})
    gin.bind_parameter("sums_cot_mix/cot_flax.data.registration.format_rates.few_shot_cot", 3.4)
    assert shares(name)["sums_few_shot_cot"] == pytest.approx(3.4 / 4)
    for form in FOUR:
        scope = "sums_cot_mix/cot_flax.data.registration.format_rates"
        gin.bind_parameter(f"{scope}.{form}", 0.0)
    with pytest.raises(UserError, match="rates of sums_cot_mix, which are all 0"):
        shares(name)


def test_examples_come_by_their_rates(add_sums, plain, vocabulary):
    add_sums()
    batches = take({"sums_zero_shot_cot": 1, "plain": 3}, 100)
    texts = [vocabulary.decode(t.tolist()) for b in batches for t in b["decoder_target_tokens"]]
    share = texts.count("It is nine") / len(texts)
    assert share == pytest.approx(0.75, abs=0.065)  # three standard deviations of 400


# Teachers and others ------------------------------------------------------------------------------


def test_teachers_and_others_mix(add_sums, bound_store, plain, vocabulary):
    """The store's chains have rows, a task of ours and a plain one of SeqIO's rows of nothing."""
    add_sums()
    name = mixture({TAUGHT: 2.0, "sums_cot_mix": 1.0, "plain": 0.5}, name="both")
    found = shares(name)
    assert found[TAUGHT] == 2.0
    assert found["sums_zero_shot_cot"] == pytest.approx(0.4)
    assert (found["plain"], sum(found.values())) == (0.5, pytest.approx(3.5))
    TaskBatches(name, LENGTHS, batch_size=4).check(Objective(kl_weight=1.0), 256)
    taught = {
        vocabulary.decode(target.tolist()): bool((rows < 0).any())
        for batch in take(name, 12)
        for target, rows in zip(
            batch["decoder_target_tokens"], batch["teacher_top_logprobs"], strict=True
        )
    }
    assert set(taught.values()) == {True, False}
    assert taught["It is nine"] is False
    assert taught["1 + 1 = 2. The answer is 2"] is False
    assert cot_task("sums_zero_shot_cot").dataset == "sums"
    assert TEACHER_FEATURES[0] not in find_task("sums_zero_shot_cot").output_features


def test_the_loss_is_kl_of_the_ones_and_cross_entropy_of_the_others(add_sums, bound_store):
    add_sums()
    (batch,) = take({TAUGHT: 1, "sums_zero_shot_cot": 1}, 1, batch_size=16, seed=1)
    config = T5Config(
        vocab_size=256, emb_dim=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1,
        head_dim=4, mlp_dim=32,
    )  # fmt: skip
    student = build(config, special_ids(find_task(TAUGHT).output_features["targets"].vocabulary))
    params = student.init(jax.random.key(0))["params"]
    kl = Objective(kl_weight=1.0)

    def loss(objective, rows, names):
        part = {name: batch[name][rows] for name in names}
        return float(step.loss_sums(student, objective, params, part)[0])

    taught = (batch["teacher_top_logprobs"] < 0).any(axis=(1, 2))
    assert 0 < taught.sum() < len(taught)
    alone = [name for name in batch if name not in TEACHER_FEATURES]
    parts = loss(kl, taught, batch), loss(kl.without_teacher(), ~taught, alone)
    assert loss(kl, slice(None), batch) == pytest.approx(sum(parts), rel=1e-5)
    assert parts[1] == pytest.approx(loss(kl, ~taught, batch), rel=1e-5)
    assert loss(kl.without_teacher(), slice(None), alone) != pytest.approx(sum(parts), rel=1e-3)


@pytest.mark.parametrize("pack", [False, True])
def test_stores_of_different_k_mix(narrow, bound_store, plain, pack):
    batches = take({TAUGHT: 1, narrow: 1, plain: 1}, 4, pack=pack)
    assert {batch["teacher_top_ids"].shape[2] for batch in batches} == {5}
    places = [(batch["decoder_target_tokens"] == 9).nonzero() for batch in batches]
    rows = [b["teacher_top_ids"][p] for b, p in zip(batches, places, strict=True)]
    narrow_rows = [row.tolist() for part in rows for row in part if row[1] == 8]
    assert narrow_rows and set(map(tuple, narrow_rows)) == {(9, 8, -1, -1, -1)}
    logprobs = [b["teacher_top_logprobs"][p] for b, p in zip(batches, places, strict=True)]
    assert [-0.25, -2.0, 0.0, 0.0, 0.0] in [row.tolist() for part in logprobs for row in part]


def test_rows_of_unknown_width_are_said(narrow, bound_store):
    unknown = find_task(narrow)
    lose = lambda dataset: dataset.map(  # noqa: E731
        lambda e: e | {n: tf.ensure_shape(e[n], [None, None]) for n in TEACHER_FEATURES}
    )
    seqio.TaskRegistry.add(
        "unknown",
        source=unknown.source,
        preprocessors=[
            lambda dataset: dataset.map(
                lambda e: {
                    n: tf.numpy_function(lambda x: x, [v], v.dtype) if n in TEACHER_FEATURES else v
                    for n, v in e.items()
                }
            ),
            lose,
        ],
        output_features=unknown.output_features,
    )
    with pytest.raises(UserError, match="as many entries at every position"):
        take({TAUGHT: 1, "unknown": 1}, 1)


# Runs ---------------------------------------------------------------------------------------------


def test_other_rates_are_another_run(add_sums):
    add_sums()
    add_sums("more")

    def facts(tasks):
        return {"data": TaskBatches(tasks, LENGTHS, 4).facts}

    before = facts({"sums_cot_mix": 2, "more_cot_mix": 1})
    assert before["data"]["rates"]["sums_few_shot_cot"] == pytest.approx(0.4 * 2 / 3)
    assert not resume.changes(before, facts({"more_cot_mix": 2, "sums_cot_mix": 4}))
    found = resume.changes(before, facts({"sums_cot_mix": 3, "more_cot_mix": 1}))
    assert {change.path for change in found} == {"data.mixture", "data.rates"}
    with pytest.raises(UserError, match=r"begun with MIXTURE_OR_TASK_NAME .*mixing rates"):
        resume.check(found, "runs/x", accept=False)


def test_other_chains_in_one_of_several_stores_are_another_run(
    add_sums, bound_store, make_store, make_sample
):
    texts = [f"{said} The answer is 2" for said in ("1 + 1 = 2.", "1 + 1 = 2.", "That is 2.")]
    stores = (make_store([make_sample(text)]) for text in texts)
    add_sums(teacher_store=lambda: folder)

    def facts():
        tasks = {"sums_teacher_zero_shot_cot": 1, TAUGHT: 1}
        return {"data": TaskBatches(tasks, LENGTHS, 4).facts}

    folder = next(stores)
    before = facts()
    assert set(before["data"]["stores"]) == {"sums_teacher", "stories_teacher"}
    folder = next(stores)
    assert not resume.changes(before, facts())
    folder = next(stores)
    (change,) = resume.changes(before, facts())
    assert str(change) == "other chains in sums_teacher" and change.is_of_stream
    assert "stores" not in TaskBatches(TAUGHT, LENGTHS, 4).facts


def test_evaluation_takes_names_and_dicts(add_sums):
    add_sums()
    names = ["sums_cot_mix", "sums_zero_shot_cot"]
    assert (
        task_names(names)
        == task_names(dict.fromkeys(names, 2))
        == sorted(f"sums_{form}" for form in FOUR)
    )


# Paper [1]'s micro-batches ------------------------------------------------------------------------

SIZES = {
    "250m": ((25, 40, 35, 60), (60.1, 37.5, 1.5, 0.9), 13_800),
    "780m": ((8, 18, 12, 30), (67.7, 30.1, 1.6, 0.6), 38_200),
    "3b": ((2, 8, 10, 20), (79.3, 19.8, 0.56, 0.28), 130_600),
}
FORMATS = ("few_shot_cot", "zero_shot_cot", "few_shot_answer", "zero_shot_answer")


@pytest.mark.parametrize(("sizes", "percents", "count"), SIZES.values(), ids=SIZES)
def test_the_shares_of_paper_1(sizes, percents, count):
    """207,135 chains and 7,296 questions in each of two formats; conf/batch_size/*.yaml."""
    examples = dict(zip(FORMATS, (207_135, 207_135, 7_296, 7_296), strict=True))
    found = microbatch_shares(examples, dict(zip(FORMATS, sizes, strict=True)))
    assert sum(found.values()) == pytest.approx(1)
    for share, percent in zip(found.values(), percents, strict=True):
        assert 100 * share == pytest.approx(percent, abs=0.05)
    least = examples["zero_shot_answer"] // sizes[-1]
    assert least / found["zero_shot_answer"] == pytest.approx(count, rel=0.003)


def test_what_is_left_of_a_micro_batch_is_dropped():
    assert microbatch_shares({"a": 7, "b": 2}, {"a": 3, "b": 1}) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize(
    ("examples", "sizes"),
    [({"a": 3}, {"b": 3}), ({"a": 3}, {"a": 0}), ({"a": 3}, {"a": 4}), ({"a": 3}, {"a": -1})],
)
def test_micro_batches_that_cannot_be(examples, sizes):
    with pytest.raises(UserError, match="microbatch_shares"):
        microbatch_shares(examples, sizes)


def test_shares_are_the_tasks_of_a_mixture(add_sums):
    add_sums()
    counts = {"sums_few_shot_cot": 40, "sums_zero_shot_cot": 40}
    name = mixture(microbatch_shares(counts, {"sums_few_shot_cot": 2, "sums_zero_shot_cot": 8}))
    assert list(shares(name).values()) == pytest.approx([0.8, 0.2])
