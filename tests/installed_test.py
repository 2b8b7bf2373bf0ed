"""The wheel and the source archive: an installed package needs no checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("tasks", "gin", "examples")  # folders that a checkout has beside the package
PACKED = ("cot_flax", *BESIDE, "LICENSE", "README.md", "pyproject.toml", "setup.py")
NOISE = shutil.ignore_patterns("__pycache__")
SMALL = [
    *("--gin.TRAIN_STEPS=1", "--gin.BATCH_SIZE=2", "--gin.WARMUP_STEPS=0", "--gin.EVALUATORS=()"),
    *("--gin.t5.T5Config.num_encoder_layers=1", "--gin.t5.T5Config.num_decoder_layers=1"),
    "--gin.stories.size.train=64",
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The source archive, made of nothing but PACKED, and the wheel made of it, in one folder."""
    folder = tmp_path_factory.mktemp("built")
    source, out = folder / "source", folder / "out"
    source.mkdir()
    for name in PACKED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=NOISE)
        else:
            shutil.copy(ROOT / name, source / name)
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (archive,) = out.glob("*.tar.gz")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, archive)
    return out


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    """An environment with the wheel, over the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    # A path in a .pth file is searched, but the .pth files in it are not read: one of them would
    # import an editable installation.
    (site / "libraries.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
    (wheel,) = built.glob("*.whl")
    pip("--python", folder, "install", "--no-deps", "--force-reinstall", wheel)
    return folder


@pytest.fixture(scope="module")
def call(environment, tmp_path_factory):
    """Runs a program of the environment in a folder that was empty; returns what it prints."""
    empty = tmp_path_factory.mktemp("empty")
    ours = ("PYTHONPATH", "XLA_FLAGS", "EPATH_USE_TF", "JAX_NUMPY_RANK_PROMOTION")
    variables = {name: value for name, value in os.environ.items() if name not in ours}
    variables |= {"COT_FLAX_CACHE": str(tmp_path_factory.mktemp("cache")), "JAX_PLATFORMS": "cpu"}

    def call(program, *arguments, code=0):
        done = subprocess.run(
            [environment / "bin" / program, *map(str, arguments)],
            cwd=empty,
            env=variables,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout + done.stderr

    call.folder = empty
    return call


def files_of(folder):
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_file_of_the_package_is_in_both_and_nothing_else(built):
    ours = set().union(*map(files_of, ("cot_flax", *BESIDE)))
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        packed = {name for name in file.namelist() if ".dist-info/" not in name}
    inside = {name if name.startswith("cot_flax/") else f"cot_flax/{name}" for name in ours}
    assert packed == inside
    with tarfile.open(archive) as file:
        members = {name.partition("/")[2] for name in file.getnames()}
    assert ours | {"LICENSE", "README.md", "pyproject.toml", "setup.py"} <= members
    assert not {name for name in members if name.startswith(("tests", "launch", "benchmarks"))}


def test_the_installed_package_is_the_one_that_runs(call, environment):
    place = call("python", "-c", "import cot_flax; print(cot_flax.__file__)")
    assert Path(place.strip()).is_relative_to(environment)
    assert call("cot-flax", "--version").startswith("cot-flax ")


def test_gin_files_and_the_example_come_with_it(call):
    listed = call("cot-flax", "experiments")
    assert "experiments/world_base.gin  " in listed and "examples/triage  You sort" in listed
    call("cot-flax", "experiments", "copy", "triage")
    there = {path.name for path in (call.folder / "examples" / "triage").iterdir()}
    assert there == {path.name for path in (ROOT / "examples" / "triage").iterdir()}
    asked = call(
        *("cot-flax", "teach", "scenario", "examples/triage", "--model=m", "--out=t.jsonl"),
        *("--base-url=http://127.0.0.1:9/v1", "--dry-run"),
    )
    assert "payroll service" in asked
    call("cot-flax", "teach", "stories", "--out=few.jsonl.gz", "--stories=2", "--samples=1")
    assert "experiments/world_base.gin" in call("cot-flax", "train", code=2)


def test_a_type_checker_sees_our_types(call):
    (call.folder / "client.py").write_text(
        "from cot_flax.text.answers import extract_answer\n"
        'answer: int = extract_answer("It is 7.", kind="number", mode="strict")\n'
    )
    python = call("python", "-c", "import sys; print(sys.executable)").strip()
    words = ["--python-executable", python, "--follow-imports=silent", "client.py"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words], cwd=call.folder, capture_output=True, text=True
    )
    assert 'expression has type "str | None", variable has type "int"' in done.stdout, done


@pytest.mark.slow
def test_every_verb_runs_in_an_empty_folder(call):
    call("cot-flax", "teach", "stories", "--out=samples.jsonl.gz", "--stories=8", "--samples=2")
    task = "--task=stories_teacher_zero_shot_cot"
    call("cot-flax", "prepare", "samples.jsonl.gz", "--out=store", task, "--workers=1")
    call("cot-flax", "experiments", "copy", "world_cot_kl", "--out=mine.gin")
    with open(call.folder / "mine.gin", "a") as file:
        file.write("LEARNING_RATE = 0.5\n")
    run = ["--gin.MODEL_DIR=run", "--gin.TEACHER_STORE=store", *SMALL]
    call("cot-flax", "train", "--gin_file=./mine.gin", *run)
    assert "LEARNING_RATE = 0.5" in (call.folder / "run" / "config.gin").read_text()
    call(
        *("cot-flax", "evaluate", "--gin_file=experiments/world_evaluate.gin"),
        *("--gin.CHECKPOINT_PATH=run", "--gin.EVAL_OUTPUT_DIR=run/test", "--gin.MAX_EXAMPLES=2"),
        *("--gin.MIXTURE_OR_TASK_NAME=stories_zero_shot_cot", "--gin.MAX_DECODE_LENGTH=2"),
    )
    call("cot-flax", "report", "run", "--out=report.html")
    for format in ("huggingface", "t5x"):
        call("cot-flax", "export", "--checkpoint=run", f"--format={format}", f"--out={format}")
    assert (call.folder / "huggingface" / "README.md").exists()
    assert "Fits cpu" in call("cot-flax", "plan", "--target=cpu", "--gin_file=mine.gin", *SMALL)
    assert "\n0 problems, " in call("cot-flax", "doctor")
    call("cot-flax", "demo", "--fast")
    assert (call.folder / "runs" / "demo" / "report.html").exists()
