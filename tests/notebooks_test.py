"""The notebooks of Colab, Kaggle and Jupyter, executed whole by kernels of bare images.

A kernel has ipykernel and pip, no package of ours, and neither `venv` nor `ensurepip`, as on
Colab's TPU image; its variables are those that Colab and Kaggle set, or worse.
"""

import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import gin
import nbclient
import nbformat
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cot_flax import configuration
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ("world", "flan_t5")
BASH = "%%bash\n"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
ABSENT = """
import sys

for name in ("venv", "ensurepip", "virtualenv", "tensorflow", "jax", "cot_flax"):
    sys.modules[name] = None
"""
# Of the images: Kaggle's and Colab's TPU, with a libtpu and pins that are not ours.
IMAGE = {
    "KAGGLE_KERNEL_RUN_TYPE": "Interactive",
    "TPU_LIBRARY_PATH": "/usr/lib/libtpu.so",
    "TPU_PROCESS_ADDRESSES": "local",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "UV_SYSTEM_PYTHON": "true",
    "UV_CONSTRAINT": "",
    "PIP_USER": "0",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64:/usr/local/cuda/lib64",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    "COT_FLAX_FAST": "1",
}


def read(name):
    return nbformat.read(ROOT / "launch" / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def titled(notebook, title):
    (cell,) = [cell for cell in code(notebook) if cell.source.startswith(f"# @title {title}\n")]
    return cell


@pytest.fixture(params=NOTEBOOKS)
def notebook(request):
    return read(request.param)


def fill_in(notebook, **fields):
    """What a user writes into the forms."""
    for name, value in fields.items():
        for cell in code(notebook):
            cell.source, count = re.subn(
                rf"^{name} = .*(?=  # @param)", f"{name} = {value!r}", cell.source, flags=re.M
            )
            if count:
                break
        else:
            raise KeyError(name)


def link(names, folder):
    """Links installed distributions, with all that they need, into a folder of packages."""
    seen, left = set(), list(names)
    while left:
        name = left.pop()
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of another platform
        if name in seen:
            continue
        seen.add(name)
        needed = [line for line in distribution.requires or () if "extra ==" not in line]
        left += [re.split(r"[^\w.-]", line)[0] for line in needed]
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))


def packages(environment):
    return next(environment.glob("lib/python*/site-packages"))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A Python of this version with what a kernel needs, as an image has it."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    link(["ipykernel", "pip", "setuptools"], packages(folder))
    (packages(folder) / "sitecustomize.py").write_text(ABSENT)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache in which the environment has all that cot-flax needs, but not cot-flax."""
    folder = tmp_path_factory.mktemp("cache")
    environment = folder / f"notebook-{PYTHON}"
    venv.create(environment, symlinks=True)
    ours = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages(environment) / "theirs.pth").write_text("\n".join(ours))
    return folder


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Executes a notebook beside a folder of the image's packages."""

    def run(notebook, python, folder, **variables):
        theirs = tmp_path / "image"
        theirs.mkdir(exist_ok=True)
        (theirs / "numpy.py").write_text("raise ImportError('of the image')")
        kernel = tmp_path / "jupyter" / "kernels" / "bare"
        kernel.mkdir(parents=True, exist_ok=True)
        command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        named = {"PYTHONPATH": str(theirs)} | IMAGE | variables
        spec = {"argv": command, "display_name": "bare", "language": "python", "env": named}
        (kernel / "kernel.json").write_text(json.dumps(spec))
        monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
        client = nbclient.NotebookClient(
            notebook,
            timeout=1800,
            coalesce_streams=True,  # as a page shows them
            kernel_name="bare",
            resources={"metadata": {"path": str(folder)}},
        )
        try:
            client.execute()
        finally:  # for whoever wants to see it
            nbformat.write(notebook, tmp_path / "executed.ipynb")

    return run


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def test_a_notebook_is_short_and_holds_no_output(notebook):
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 10
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(notebook))


def test_both_are_set_up_by_the_same_text():
    first, second = (titled(read(name), "Set up") for name in NOTEBOOKS)
    assert (first.source, first.metadata) == (second.source, second.metadata)


def test_its_commands_stop_at_the_first_that_fails(notebook):
    scripts = [cell.source.removeprefix(BASH) for cell in code(notebook) if BASH in cell.source]
    assert len(scripts) >= 3
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for script in scripts:
        assert script.startswith("set -euo pipefail\nexec 2>&1\n")
        command = [shellcheck, "--shell=bash", "-"]
        done = subprocess.run(command, input=script, stdout=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


def test_the_commands_of_the_world_have_the_files_and_macros_that_they_name():
    for cell in code(read("world")):
        lines = cell.source.replace("\\\n", " ").replace("$student", "world_cot_kl").splitlines()
        for line in lines:
            if line.strip().startswith(("cot-flax train", "cot-flax evaluate")):
                _, _, file, *flags = shlex.split(re.sub(r"\$(\w+|\(\(.*?\)\))", "8", line))
                bound = [flag.removeprefix("--gin.") for flag in flags]
                configuration.parse([file.removeprefix("--gin_file=")], bound)
                gin.clear_config()


@pytest.fixture
def set_up(tmp_path, monkeypatch):
    """Functions of the set-up, on a machine whose devices, uploads and folder are in tmp_path."""
    monkeypatch.chdir(tmp_path)
    source = titled(read("world"), "Set up").source.partition("\n# What the image set")[0]
    for place in ("dev", "content", "kaggle"):
        source = re.sub(rf'"/{place}(?=[/"])', f'"{tmp_path}/{place}', source)
        (tmp_path / place).mkdir()
    names = {"DEVICE": ""}
    exec(source, names)
    return names


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_opened_by_a_link_it_asks_for_an_address(name, set_up):
    with pytest.raises(SystemExit, match=r"^got no cot-flax: .*; expected its address; "):
        set_up["find_cot_flax"]()


@pytest.mark.parametrize(
    "place", ["here", "here/../", "content", "kaggle/input/datasets/me/wheels", "kaggle/input/w"]
)
def test_an_uploaded_wheel_is_found(place, set_up, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    wheel = tmp_path / place / "cot_flax-0.1.0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    found = Path(set_up["find_cot_flax"]()).resolve()
    assert found == wheel.resolve()
    before = set_up["fingerprint"](found)
    wheel.write_bytes(b"another of the same name")
    assert set_up["fingerprint"](found) != before


@pytest.mark.parametrize("place", [".", "..", "cot-flax", "content/cot-flax", "kaggle/input/c"])
def test_a_checkout_is_found_before_a_wheel(place, set_up, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    outside = place.startswith(("content", "kaggle"))
    checkout = (tmp_path if outside else tmp_path / "here") / place
    checkout.mkdir(parents=True, exist_ok=True)
    for part in set_up["PARTS"]:
        (checkout / part).mkdir()
    (tmp_path / "here" / "cot_flax-0.1.0-py3-none-any.whl").touch()
    assert Path(set_up["find_cot_flax"]()).resolve() == checkout.resolve()
    before = set_up["fingerprint"](checkout)
    (checkout / "cot_flax" / "changed.py").write_text("1")
    assert set_up["fingerprint"](checkout) != before


@pytest.mark.parametrize(
    ("answer", "device"),
    [
        ("580.65.06, 7.5", "gpu"),  # a T4
        ("570.86.15, 8.9", "old gpu"),  # its driver has CUDA 12.8
        ("590.10, 6.0", "old gpu"),  # a P100, which CUDA 13 knows no more
        (None, ""),  # the command without a GPU
    ],
)
def test_a_gpu_gets_the_cuda_that_its_driver_has(answer, device, set_up, tmp_path, monkeypatch):
    assert set_up["accelerator"]() == ""
    answers = f"echo {answer}; echo {answer}" if answer else "echo no driver; exit 9"
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answers}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert set_up["accelerator"]() == device
    (tmp_path / "dev" / "vfio").mkdir()
    (tmp_path / "dev" / "vfio" / "vfio").touch()
    assert set_up["accelerator"]() == device
    (tmp_path / "dev" / "vfio" / "0").touch()
    assert set_up["accelerator"]() == "tpu"


@pytest.mark.parametrize(
    ("source", "built"),
    [
        ("https://host/me/cot-flax", "git+https://host/me/cot-flax"),
        ("git+ssh://git@host/me/cot-flax@main", "git+ssh://git@host/me/cot-flax@main"),
        ("https://host/me/main.zip", "https://host/me/main.zip"),
        ("cot_flax-0.1.0-py3-none-any.whl", "cot_flax-0.1.0-py3-none-any.whl"),
    ],
)
@pytest.mark.parametrize(
    ("device", "extras", "others"),
    [
        ("", "[data,teach,report]", []),
        ("tpu", "[data,teach,report,tpu]", []),
        ("old gpu", "[data,teach,report]", ["jax[cuda12]"]),
    ],
)
def test_what_an_address_names_is_built_and_installed(
    source, built, device, extras, others, set_up, tmp_path
):
    calls = []

    def call(*words):
        calls.append([str(word) for word in words])
        if "wheel" in words:
            folder = Path(words[words.index("--wheel-dir") + 1])
            (folder / "cot_flax-0.1.0-py3-none-any.whl").touch()

    set_up.update(call=call, DEVICE=device, VENV=tmp_path / "environment")
    set_up["install"](source)
    *_, made, wheel, all_of_it, it = calls
    assert made[1:3] == ["venv", "--clear"] and made[-1] == f"{tmp_path}/environment"
    assert wheel[-1] == built
    python = f"{tmp_path}/environment/bin/python"
    assert all_of_it[3:7] == ["--python", python, "install", "--quiet"]
    assert all_of_it[7:] == [f"{it[-1]}{extras}", *others]
    assert it[-3:-1] == ["--force-reinstall", "--no-deps"]


def test_a_secret_is_taken_where_there_is_one(set_up, monkeypatch):
    def missing(name):
        raise KeyError(name)

    assert set_up["secret"]("HF_TOKEN") is None
    for get, value in ((lambda name: f"{name} of Kaggle", "HF_TOKEN of Kaggle"), (missing, None)):
        client = type("UserSecretsClient", (), {"get_secret": staticmethod(get)})
        monkeypatch.setitem(
            sys.modules, "kaggle_secrets", SimpleNamespace(UserSecretsClient=client)
        )
        set_up["KAGGLE"] = True
        assert set_up["secret"]("HF_TOKEN") == value
    set_up.update(KAGGLE=False, COLAB=True)
    userdata = SimpleNamespace(get=lambda name: f"{name} of Colab")
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace(userdata=userdata))
    assert set_up["secret"]("HF_TOKEN") == "HF_TOKEN of Colab"


def test_the_set_up_builds_and_installs_a_wheel(bare, cache, execute, tmp_path):
    """Into an environment that lacks nothing else; whatever the image has set."""
    notebook = read("world")
    cells = notebook.cells
    teach = next(cell for cell in cells if "teach stories" in cell.source)
    names = "TPU_LIBRARY_PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PIP_CONSTRAINT"
    said = nbformat.v4.new_code_cell(
        f"print({{name: os.environ[name] for name in {names} if name in os.environ}})"
    )
    notebook.cells = [titled(notebook, "Set up"), cells[cells.index(teach) - 1], teach, said]
    fill_in(notebook, COT_FLAX=str(ROOT))
    (tmp_path / "here").mkdir()
    execute(notebook, bare, tmp_path / "here", COT_FLAX_CACHE=str(cache))
    set_up, _, taught, said = notebook.cells
    assert printed(said) == "{'LD_LIBRARY_PATH': '/usr/local/nvidia/lib64'}\n"
    assert "Installing cot-flax from" in printed(set_up)
    assert re.search(r"JAX [\d.]+, 8 x cpu\nNO ACCELERATOR IS USED\n", printed(set_up))
    environment = cache / f"notebook-{PYTHON}"
    installed = packages(environment) / "cot_flax"
    assert (installed / "gin" / "runs" / "train.gin").exists() and not installed.is_symlink()
    assert (installed / "examples" / "triage" / "test.jsonl").exists()
    assert "40 samples in runs/world/samples.jsonl.gz" in printed(taught)
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"runs"}
    notebook.cells = [set_up]
    execute(notebook, bare, tmp_path / "here", COT_FLAX_CACHE=str(cache))
    assert "Installing" not in printed(set_up) and "NO ACCELERATOR IS USED" in printed(set_up)


def test_a_file_that_is_not_there_is_said_before_anything_is_installed(tmp_path):
    notebook = read("flan_t5")
    form = titled(notebook, "Data and weights")
    assert code(notebook)[0] is form
    exec(form.source, {})
    fill_in(notebook, DATA=str(tmp_path / "tickets.csv"))
    with pytest.raises(SystemExit, match=r"^got no file .*tickets\.csv; expected .*; upload"):
        exec(form.source, {})


@pytest.mark.slow
def test_the_world_goes_from_the_set_up_to_the_report(bare, cache, execute, tmp_path):
    notebook = read("world")
    fill_in(notebook, COT_FLAX=str(ROOT))
    execute(notebook, bare, tmp_path, COT_FLAX_CACHE=str(cache))
    page = (tmp_path / "runs" / "world.html").read_text()
    assert "world_answer" in page and "world_cot_kl" in page
    *_, trained, _, shown = code(notebook)
    assert "step 2 " in printed(trained) and "\x1b" not in printed(trained)
    assert "<iframe srcdoc=" in shown.outputs[0].data["text/html"]
    facts = json.loads((tmp_path / "runs" / "world" / "world_answer" / "run.json").read_text())
    assert facts["training"]["mesh"]["data"] == 8
    again = read("world")
    fill_in(again, COT_FLAX=str(ROOT))
    execute(again, bare, tmp_path, COT_FLAX_CACHE=str(cache))
    *_, trained, evaluated, _ = code(again)
    assert printed(trained).count("nothing to do") == 2
    assert printed(evaluated).count("2 of 2 tasks are in") == 2


@pytest.fixture
def weights(tmp_path, fixtures):
    """A T5 with random weights and the world's vocabulary, and the gin file of its shape."""
    folder = tmp_path / "weights"
    folder.mkdir()
    config = json.loads((fixtures / "hf_tiny_v1_1" / "config.json").read_text())
    config["vocab_size"] = 384  # of the vocabulary, with T5's 100 sentinels
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(fixtures / "hf_tiny_v1_1" / "model.safetensors")
    random = np.random.default_rng(0)
    for name, tensor in tensors.items():
        if tensor.shape[0] == 256:
            tensors[name] = random.normal(size=(384, tensor.shape[1])).astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "spiece.model").write_bytes(VOCABULARY_PATH.read_bytes())
    (tmp_path / "tiny.gin").write_text(TINY)
    return {"WEIGHTS": str(folder), "MODEL": str(tmp_path / "tiny.gin")}


TINY = """
from __gin__ import dynamic_registration
from cot_flax.students import t5
include 'models/t5_1_1.gin'
t5.T5Config:
  vocab_size = 384
  emb_dim = 32
  num_heads = 2
  num_encoder_layers = 2
  num_decoder_layers = 2
  head_dim = 8
  mlp_dim = 64
"""


def sums(count, name="Ann"):
    """Questions with a chain and an answer, in words of the world."""
    for i in range(2, 2 + count):
        yield (
            f"{name} has {i} pens and buys {i + 1} more.",
            f"{i} + {i + 1} = {2 * i + 1}.",
            2 * i + 1,
        )


def gsm8k(folder):
    """GSM8K's files where the notebook would download them; it holds out the last 500 lines."""
    data = folder / "runs" / "gsm8k" / "main"
    data.mkdir(parents=True)
    for split, count, name in (("train", 540, "Ann"), ("test", 4, "Eve")):
        lines = [
            json.dumps({"question": question, "answer": f"{chain}\n#### {answer}"}) + "\n"
            for question, chain, answer in sums(count, name)
        ]
        (data / f"{split}.jsonl").write_text("".join(lines))
    return {}


def tickets(folder):
    rows = [f'"{question}","{chain}",{answer}\n' for question, chain, answer in sums(40)]
    (folder / "tickets.csv").write_text("ticket,reasoning,label\n" + "".join(rows))
    columns = "question=ticket,text=reasoning,gold_answer=label"
    return {"DATA": "tickets.csv", "COLUMNS": columns, "ANSWERS": "number"}


@pytest.mark.slow
@pytest.mark.parametrize("data", [gsm8k, tickets])
def test_flan_t5_goes_from_weights_and_data_to_the_report_and_an_export(
    data, bare, cache, execute, tmp_path, weights
):
    notebook = read("flan_t5")
    fill_in(notebook, COT_FLAX=str(ROOT), **weights, **data(tmp_path))
    execute(notebook, bare, tmp_path, COT_FLAX_CACHE=str(cache))
    (run,) = (tmp_path / "runs").glob(f"{'gsm8k' if data is gsm8k else 'tickets'}-*")
    assert {path.name for path in run.iterdir()} == {"after", "before", "exported", "report.html"}
    for when in ("before", "after"):
        results = json.loads((run / when / "test" / "results.json").read_text())
        ((task, result),) = results["tasks"].items()
        assert task == ("gsm8k" if data is gsm8k else "scenario") + "_zero_shot_cot"
        assert result["count"] == 4
    facts = json.loads((run / "after" / "run.json").read_text())
    assert facts["started_from"] == weights["WEIGHTS"]
    assert facts["training"]["mesh"]["data"] == 8
    assert {"config.json", "model.safetensors"} <= {p.name for p in (run / "exported").iterdir()}
    *_, shown, exported = code(notebook)
    assert "<iframe srcdoc=" in shown.outputs[0].data["text/html"]
    assert str(run.relative_to(tmp_path)) in printed(exported)


@pytest.mark.slow
def test_the_world_installs_all_on_a_bare_image(execute, tmp_path):
    """3 GB from the package index; PYTHON names another interpreter than the tests'.

    With COT_FLAX_FAST= it is as large as for a user: what docs/hosts.md has was measured so.
    """
    python = os.environ.get("PYTHON", sys._base_executable)
    subprocess.run([python, "-m", "venv", tmp_path / "image_venv"], check=True)
    bare = tmp_path / "image_venv" / "bin" / "python"
    subprocess.run([bare, "-m", "pip", "install", "--quiet", "ipykernel"], check=True)
    (packages(tmp_path / "image_venv") / "sitecustomize.py").write_text(ABSENT)
    notebook = read("world")
    fill_in(notebook, COT_FLAX=str(ROOT))
    (tmp_path / "pins.txt").write_text("jax==0.7.2\nlibtpu==0.0.17\n")
    execute(
        notebook,
        bare,
        tmp_path,
        COT_FLAX_CACHE=str(tmp_path / "cache"),
        PIP_CONSTRAINT=str(tmp_path / "pins.txt"),
        COT_FLAX_FAST=os.environ.get("COT_FLAX_FAST", "1"),
        XLA_FLAGS="",
    )
    assert "world_cot_kl" in (tmp_path / "runs" / "world.html").read_text()
