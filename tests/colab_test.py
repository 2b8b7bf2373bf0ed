"""The Colab notebook, executed whole at a tiny size."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

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
    assert len(scripts) == 4
    shellcheck = Path(sys.executable).with_name("shellcheck")
    for script in scripts:
        assert script.startswith("set -euo pipefail\n")
        command = [shellcheck, "--shell=bash", "-"]
        done = subprocess.run(command, input=script, stdout=subprocess.PIPE, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "")


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
    (shown,) = code(notebook)[-1].outputs
    assert "<iframe srcdoc=" in shown.data["text/html"]
