import io
import os
import pickle
import sys
import types
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest

from cot_flax.errors import UserError
from cot_flax.weights.files.torch_pickle import read


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="PyTorch writes the files to be read")


def save(torch, path, tensors, **options):
    torch.save(tensors, path, **options)
    return path


def test_what_torch_wrote(torch, tmp_path):
    tensors = OrderedDict(
        matrix=torch.arange(12.0).reshape(3, 4),
        half=torch.arange(3).half(),
        brain=torch.arange(4).bfloat16(),
        double=torch.arange(2).double(),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    tensors._metadata = {"": {"version": 1}}  # as a state dict of a module has it
    found = read(save(torch, tmp_path / "a.bin", tensors))
    assert list(found) == list(tensors)
    assert found["matrix"].shape == (3, 4)
    assert [found[n].dtype for n in ("matrix", "half", "brain", "double")] == [
        np.float32,
        np.float16,
        ml_dtypes.bfloat16,
        np.float64,
    ]
    for name, tensor in tensors.items():
        expected = tensor.detach().float().numpy()
        np.testing.assert_array_equal(found[name].whole().astype(np.float32), expected)
    np.testing.assert_array_equal(
        found["matrix"].read((slice(1, None), slice(2))), [[4.0, 5.0], [8.0, 9.0]]
    )


def test_views_of_one_storage_keep_their_offsets_and_strides(torch, tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    views = {"turned": base.T, "part": base[1:3, ::2], "shared": base, "row": base[2]}
    found = read(save(torch, tmp_path / "a.bin", views))
    for name, view in views.items():
        np.testing.assert_array_equal(found[name].whole(), view.numpy(), name)
    np.testing.assert_array_equal(
        found["turned"].read((slice(1, 3), slice(3, 4))), [[19.0], [20.0]]
    )


def test_the_format_before_1_6(torch, tmp_path):
    path = save(
        torch, tmp_path / "a.bin", {"a": torch.ones(2)}, _use_new_zipfile_serialization=False
    )
    with pytest.raises(UserError, match=r"PyTorch before 1.6; .*safetensors.torch.save_file"):
        read(path)


def test_a_file_cut_short(torch, tmp_path):
    path = save(torch, tmp_path / "a.bin", {"a": torch.ones(2000)})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"a.bin \([\d,]+ bytes\), which is no whole file"):
        read(path)


@pytest.mark.parametrize("content", [[1.0], {"step": 3}])
def test_what_is_no_state_dict(torch, tmp_path, content):
    with pytest.raises(UserError, match="no state dict"):
        read(save(torch, tmp_path / "a.bin", content))


def test_whole_numbers_are_refused(torch, tmp_path):
    with pytest.raises(UserError, match=r"asks for torch\.LongStorage"):
        read(save(torch, tmp_path / "a.bin", {"a": torch.ones(2).long()}))


# Files that PyTorch does not write; `Call` pickles as a call of a function.


class Call:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


class Storage:
    """What a tensor's pickle names by a persistent id."""


def archive(path, content, numbers=()):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            known = ("storage", "FloatStorage", "0", "cpu", len(numbers))
            return known if isinstance(value, Storage) else None

    text = io.BytesIO()
    Pickler(text, protocol=2).dump(content)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", text.getvalue())
        file.writestr("archive/data/0", np.array(numbers, np.float32).tobytes())
    return path


def test_code_is_not_run(tmp_path):
    path = archive(tmp_path / "a.bin", {"a": Call(os.mkdir, str(tmp_path / "trace"))})
    with pytest.raises(UserError, match=r"asks for (posix|nt)\.mkdir.*unsafe"):
        read(path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("function", [eval, getattr, os.system, np.dtype, bytearray])
def test_no_other_function_is_known(tmp_path, function):
    with pytest.raises(UserError, match="asks for"):
        read(archive(tmp_path / "a.bin", {"a": Call(function, "1")}))


def rebuild(*arguments):
    raise AssertionError("only its name is pickled")


rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"


def tensor(monkeypatch, offset, shape, strides):
    """A pickled tensor over four numbers, made without PyTorch."""
    module = types.ModuleType("torch._utils")
    module._rebuild_tensor_v2 = rebuild
    monkeypatch.setitem(sys.modules, "torch._utils", module)
    return Call(rebuild, Storage(), offset, shape, strides, False, OrderedDict())


def test_a_file_made_by_hand(tmp_path, monkeypatch):
    content = {"a": tensor(monkeypatch, 1, (3,), (1,))}
    found = read(archive(tmp_path / "a.bin", content, [1.0, 2.0, 3.0, 4.0]))
    np.testing.assert_array_equal(found["a"].whole(), [2.0, 3.0, 4.0])


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(2, (3,), (1,)), (0, (2, 2), (3, 2)), (-1, (2,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (1,))],
)
def test_a_tensor_beyond_its_storage(tmp_path, monkeypatch, offset, shape, strides):
    content = {"a": tensor(monkeypatch, offset, shape, strides)}
    with pytest.raises(UserError, match="no whole file of PyTorch"):
        read(archive(tmp_path / "a.bin", content, [1.0, 2.0, 3.0, 4.0]))
