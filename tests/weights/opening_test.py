"""Tests of the one way in: every kind of checkpoint is known by its files."""

import os

import jax
import numpy as np
import pytest

from cot_flax.errors import UserError
from cot_flax.students.parameters import Tensor, nest
from cot_flax.students.t5 import T5Student
from cot_flax.students.t5.config import T5Config
from cot_flax.training.checkpoints import Checkpointer, Metadata
from cot_flax.training.state import TrainState
from cot_flax.weights import huggingface, opening, t5x
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import Access, Source

CONFIG = T5Config(
    vocab_size=24,
    emb_dim=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=2,
    head_dim=4,
    mlp_dim=32,
)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    shapes = T5Student(CONFIG).parameter_shapes()
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def places(arrays, tmp_path_factory):
    """One model in three formats."""
    folder = tmp_path_factory.mktemp("kinds")
    tensors = {name: Tensor(a.shape, a.dtype, a.__getitem__) for name, a in arrays.items()}
    source = Source("arrays", T5Student(CONFIG), tensors)
    huggingface.write_folder(
        source, folder / "huggingface", dtype="float32", tokenizer=None, card=""
    )
    t5x.write(source, folder / "t5x", dtype="float32", step=3)
    checkpointer = Checkpointer(str(folder / "native"), period=1, keep=None)
    state = TrainState(jax.numpy.int32(3), nest(arrays), (), jax.random.PRNGKey(0))
    checkpointer.save(state, Metadata(vars(CONFIG), "abc", 0), step=3)
    checkpointer.close()
    return folder


@pytest.mark.parametrize("kind", ["huggingface", "t5x", "native"])
def test_opens_every_kind(kind, places, arrays):
    source = open_source(str(places / kind))
    assert source.place.startswith(str(places / kind))
    assert source.student.config == CONFIG
    assert source.tensors.keys() == arrays.keys()
    for name, tensor in source.tensors.items():
        np.testing.assert_array_equal(tensor.whole(), arrays[name])


@pytest.mark.parametrize("kind", ["huggingface", "t5x", "native"])
def test_no_folder_is_listed_twice(kind, places, monkeypatch):
    listed = []
    for name in ("listdir", "scandir"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda at=".", real=real: listed.append(str(at)) or real(at))
    open_source(str(places / kind))
    ours = [place for place in listed if place.startswith(str(places))]
    assert len(ours) == len(set(ours))
    assert bool(ours) == (kind != "huggingface")


def test_a_step_and_a_home_are_found(places, monkeypatch):
    assert open_source(str(places / "native" / "checkpoints" / "3")).vocabulary == "abc"
    monkeypatch.setenv("HOME", str(places))
    assert open_source("~/huggingface").student.config == CONFIG


@pytest.mark.parametrize("kind", ["huggingface", "t5x", "native", "native/checkpoints/3"])
def test_paths_may_go_up(kind, places, monkeypatch):
    (places / "elsewhere").mkdir(exist_ok=True)
    monkeypatch.chdir(places / "elsewhere")
    source = open_source(f"../{kind}")
    assert ".." not in source.place
    assert source.tensors["decoder.decoder_norm.scale"].whole().shape == (16,)


def test_a_misspelt_path_is_not_taken_for_a_name_on_the_hub(places, monkeypatch):
    monkeypatch.chdir(places.parent)
    name = f"{places.name}/nativ"
    with pytest.raises(UserError, match=rf"no folder {name} \(.*huggingface.* in .*correct the"):
        open_source(name, Access(local_files_only=True))


def test_beside_runs_the_hub_is_not_asked(tmp_path, monkeypatch):
    (tmp_path / "runs" / "base").mkdir(parents=True)
    (tmp_path / "runs" / "base" / "run.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(opening, "download", None)
    with pytest.raises(UserError, match=r"no folder runs/bse \(base in .*correct the path"):
        open_source("runs/bse")


def test_what_is_no_checkpoint_is_told_apart(tmp_path):
    with pytest.raises(UserError, match=rf"no checkpoint at {tmp_path} \(nothing there\)"):
        open_source(str(tmp_path))
    (tmp_path / "notes.txt").write_text("a")
    with pytest.raises(UserError, match=r"\(notes.txt there\); expected a model directory"):
        open_source(str(tmp_path))
    with pytest.raises(UserError, match=r"\(a file there\).*give the folder"):
        open_source(str(tmp_path / "notes.txt"))
    with pytest.raises(
        UserError,
        match=rf"no folder {tmp_path}/none \(notes.txt in .*a checkpoint; correct the path",
    ):
        open_source(str(tmp_path / "none"))
