"""A decoder-only family that stands in one file of the tests goes the whole way."""

import itertools
import json

import gin
import jax
import numpy as np
import pytest
from support.data import *  # noqa: F403
from support.data import _leave_no_trace  # noqa: F401
from support.toy_student import ToyConfig, ToyStudent

from cot_flax.data.batches import TaskBatches
from cot_flax.evaluation.evaluate import Decoding, evaluate
from cot_flax.generation.decoding import decode
from cot_flax.objectives.losses import Objective
from cot_flax.reports import card
from cot_flax.training import loop, optimizers
from cot_flax.training.sharding import MeshConfig
from cot_flax.weights.export import export
from cot_flax.weights.opening import open_source

TAUGHT, ASKED = "stories_teacher_zero_shot_cot", "stories_zero_shot_cot"
LENGTHS = {"inputs": 120, "targets": 90}
STEPS = 30


def batches_of(task, **settings):
    return TaskBatches(task, LENGTHS, 8, pack=True, **settings)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, world_store):
    gin.bind_parameter("cot_flax.tasks.stories.teacher_store.directory", world_store)
    folder = tmp_path_factory.mktemp("toy")
    state = loop.train(
        model_dir=str(folder),
        model=ToyConfig(),
        data=batches_of(TAUGHT),
        objective=Objective(kl_weight=1.0),
        optimizer=optimizers.adafactor(optimizers.constant(1e-2)),
        total_steps=STEPS,
        mesh=MeshConfig(data=2, model=2, fsdp=True),
        microbatches=2,
        log_period=10,
    )
    return folder, ToyStudent(ToyConfig()), jax.device_get(state.params)


def test_it_learns_from_the_teachers_distribution(trained):
    rows = [json.loads(line) for line in (trained[0] / "metrics.jsonl").read_text().splitlines()]
    kl = [row["kl"] for row in rows if "kl" in row]
    assert len(kl) == 3 and kl[-1] < 0.7 * kl[0]
    assert all(row["teacher_fraction"] > 0.9 for row in rows if "kl" in row)


def test_prompts_weigh_nothing_and_packed_examples_do_not_see_each_other(trained, world_store):
    gin.bind_parameter("cot_flax.tasks.stories.teacher_store.directory", world_store)
    _, student, params = trained
    batch = next(batches_of(TAUGHT).batches(student.layout))
    segments, weights = batch["decoder_segment_ids"], batch["decoder_loss_weights"]
    assert segments.max() > 1 and 0 < weights.sum() < (segments > 0).sum()
    assert np.all(batch["teacher_top_ids"][weights == 0] == -1)
    hidden = student.hidden(params, batch)
    b, t = np.argwhere(segments == 2)[-1]
    other = batch["decoder_input_tokens"].copy()
    other[b, segments[b] == 1] = 7
    changed = student.hidden(params, batch | {"decoder_input_tokens": other})
    np.testing.assert_array_equal(hidden[b, t], changed[b, t])


def test_cached_steps_say_what_whole_passes_say(trained):
    _, student, params = trained
    prompts = np.array([[0, 9, 8, 7, 0, 0], [0, 20, 30, 40, 50, 60]], np.int32)
    drawn = np.asarray(decode(student, params, prompts, max_tokens=6))[:, 0]
    for prompt, tokens in zip(prompts, drawn, strict=True):
        row = [0, *prompt[prompt > 0]]
        for token in itertools.takewhile(lambda token: token > 1, tokens):
            batch = {"decoder_input_tokens": np.array([row])}
            logits = student.hidden(params, batch)[0, -1] @ student.head(params)
            assert token == logits.argmax()
            row.append(token)


def test_it_is_evaluated_and_exported(trained, tmp_path):
    folder, student, params = trained
    for split in ("train", "test"):
        gin.bind_parameter(f"cot_flax.tasks.stories.size.{split}", 4)
    results = evaluate(
        checkpoint_path=str(folder),
        output_dir=str(tmp_path / "test"),
        mixture_or_task_name=ASKED,
        decoding=Decoding(max_tokens=20, batch_size=2, samples=2, temperature=1.0),
        mesh=MeshConfig(data=2),
    )
    assert results["tasks"][ASKED]["count"] == 8
    export(str(folder), tmp_path / "out", format="huggingface", card=card.write)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["model_type"] == "toy"
    source = open_source(str(tmp_path / "out"))
    assert source.student == student
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensor.whole(), params[name])
