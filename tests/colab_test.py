"""The Colab notebook, executed whole at a tiny size."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import gin
import nbclient
import nbformat
import pytest

from cot_flax import configuration

ROOT = Path(__file__).resolve().parents[1]
BASH = "%%bash\n"


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "launch" / "colab_tpu.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_the_notebook_is_short_and_holds_no_output(notebook):
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 10
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code(notebook))


def test_its_commands_stop_at_the_first_that_fails(notebook):
    scripts = [cell.source.removeprefix(BASH) for cell in code(notebook) if BASH in cell.source]
    assert len(scripts) == 5
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for script in scripts:
        assert script.startswith("set -euo pipefail\n")
        command = [shellcheck, "--shell=bash", "-"]
        done = subprocess.run(command, input=script, stdout=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


def test_its_commands_for_flan_t5_have_the_files_and_macros_that_they_name(notebook):
    (script,) = [cell.source for cell in code(notebook) if "flan-t5" in cell.source]
    lines = [shlex.split(line) for line in script.replace("\\\n", " ").splitlines()]
    commands = [words[1:] for words in lines if words[:1] == ["cot-flax"]]
    assert [words[0] for words in commands] == ["train", "evaluate", "evaluate", "report"]
    for _, file, *flags in commands[:3]:
        bindings = [flag.removeprefix("--gin.") for flag in flags]
        configuration.parse([file.removeprefix("--gin_file=")], bindings)
    gin.clear_config()


def test_opened_by_a_link_it_asks_for_an_address(notebook, tmp_path):
    (settings, *_) = code(notebook)
    command = [sys.executable, "-c", settings.source]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert line.startswith("got no checkout of cot-flax here; expected its address; ")


@pytest.mark.slow
def test_it_goes_from_the_set_up_to_the_report(notebook, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "setup.py", tmp_path)
    # An environment that launch/setup.sh finds complete, so that nothing is installed here.
    environment = tmp_path / "environment"
    environment.mkdir()
    for path in Path(sys.prefix).iterdir():
        (environment / path.name).symlink_to(path)
    for extras in ("alone", "gpu", "tpu"):
        shutil.copy(ROOT / "setup.py", environment / f"installed-{extras}")
    monkeypatch.setenv("VENV", str(environment))
    monkeypatch.setenv("COT_FLAX_FAST", "1")
    monkeypatch.delenv("XLA_FLAGS")
    # As on Colab, whose kernel names a backend that a fresh environment has not got; this one has.
    monkeypatch.setenv("MPLBACKEND", "a_kernel's")
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path / "launch")}},
    )
    client.execute()
    page = (tmp_path / "runs" / "colab" / "report.html").read_text()
    assert "world_answer" in page
    assert "world_cot_kl" in page
    *_, shown, flan_t5 = code(notebook)
    assert "<iframe srcdoc=" in shown.outputs[0].data["text/html"]
    assert flan_t5.outputs == []
    assert "NO ACCELERATOR IS USED" in code(notebook)[1].outputs[0].text
