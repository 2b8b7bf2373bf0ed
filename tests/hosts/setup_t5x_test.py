"""The script that puts T5X into an environment, with small packages in T5X's stead."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import gin
import pytest

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
REPOSITORIES = ("google-research/t5x", "google/airio", "google-research/jestimator")
STAND_INS = {
    "t5x/infer.py": "",
    "t5x/train.py": "",
    "cot_flax/__init__.py": "",
    "cot_flax/hosts/t5x.py": "import airio, jestimator\n",
}


def git(folder, *words):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


class Machine:
    """A checkout whose environment is complete, and a folder that stands for GitHub."""

    def __init__(self, folder):
        self.checkout, self.hub, self.peers = folder / "main", folder / "hub", folder / "peers"
        self.script = self.checkout / "launch" / "setup_t5x.sh"
        shutil.copytree(LAUNCH, self.checkout / "launch")
        (self.checkout / "setup.py").write_text("# stands for ours\n")
        venv = self.checkout / ".venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        for extras in ("t5x", "gpu,t5x"):
            shutil.copy(self.checkout / "setup.py", venv / f"installed-{extras}")
        (packages,) = venv.glob("lib/python*/site-packages")
        (packages / "gin").symlink_to(Path(gin.__file__).parent)
        self.python = venv / "bin" / "python"
        for repository in REPOSITORIES:
            self.publish(repository)

    def publish(self, repository):
        """A commit of this repository, which is then the script's."""
        made = self.hub / repository
        for name in ("__init__.py", *(STAND_INS if made.name == "t5x" else ())):
            path = made / (name if "/" in name else f"{made.name}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(STAND_INS.get(name, ""))
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
            git(made, *words)
        pinned = f"{repository}@{git(made, 'rev-parse', 'HEAD')}"
        text, count = re.subn(f"{repository}@[0-9a-f]{{40}}", pinned, self.script.read_text())
        assert count == 1
        self.script.write_text(text)

    def set_up(self, *arguments):
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "PYTHON": sys.executable,
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"url.{self.hub}/.insteadOf",
            "GIT_CONFIG_VALUE_0": "https://github.com/",
        }
        return subprocess.run(
            ["bash", self.script, *arguments], env=environment, capture_output=True, text=True
        )

    def run(self, program, folder):
        return subprocess.run(
            [self.python, "-c", program], cwd=folder, capture_output=True, text=True, env={}
        )


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def assert_one_line(done, pattern):
    assert done.returncode == 2
    assert re.fullmatch(f"setup_t5x.sh: {pattern}; expected .+; .+\n", done.stderr), done.stderr
    assert "T5X is ready" not in done.stdout


def test_what_is_not_there_is_cloned_at_its_commit_once(machine, tmp_path):
    done = machine.set_up(machine.peers)
    assert (done.returncode, done.stderr) == (0, "")
    assert ".venv/bin/python -m t5x.train --gin_search_paths=gin --gin_file=" in done.stdout
    pins = dict(re.findall(r"(\S+/\S+)@([0-9a-f]{40})$", machine.script.read_text(), re.M))
    for repository in REPOSITORIES:
        made = machine.peers / Path(repository).name
        assert git(made, "rev-parse", "HEAD") == pins[repository]
    assert {path.name for path in machine.peers.iterdir()} == {"t5x", "airio", "jestimator"}
    shutil.rmtree(machine.hub)  # nothing is asked for again, and nothing installed
    again = machine.set_up(machine.peers, "gpu")
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")
    assert machine.run("import airio, jestimator, t5x.train", tmp_path).returncode == 0


def test_the_folder_is_the_one_of_the_checkout_unless_named(machine, tmp_path):
    assert machine.set_up().returncode == 0
    assert (tmp_path / "jestimator" / "jestimator" / "__init__.py").exists()
    assert_one_line(machine.set_up(machine.checkout / "runs"), "got no .*/main/runs/t5x")
    assert not (machine.checkout / "runs").exists()


def test_a_plain_folder_hides_no_gin_file_of_that_environment(machine, tmp_path):
    assert machine.set_up(machine.peers).returncode == 0
    for name in ("runs", "team/runs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "team" / "runs" / "train.gin").touch()
    program = (
        "import gin; gin.add_config_file_search_path('team'); gin.parse_config_file({!r})".format
    )
    found = machine.run(program("runs/train.gin"), tmp_path)
    assert found.returncode == 0, found.stderr
    missing = machine.run(program("runs/trian.gin"), tmp_path)
    assert "Unable to open file: runs/trian.gin" in missing.stderr


def test_another_commit_is_said_and_used(machine):
    assert machine.set_up(machine.peers).returncode == 0
    mine = machine.peers / "airio"
    git(mine, "commit", "--allow-empty", "-qm", "mine")
    shutil.rmtree(machine.peers / "jestimator" / ".git")  # as in an archive
    done = machine.set_up(machine.peers)
    tested = r"; tested is [0-9a-f]{8}\n"
    head = git(mine, "rev-parse", "HEAD")[:8]
    assert done.returncode == 0
    assert re.fullmatch(
        f"setup_t5x.sh: warning: {mine} is at commit {head}{tested}"
        f"setup_t5x.sh: warning: {machine.peers}/jestimator is at commit unknown{tested}",
        done.stderr,
    )


def test_no_network_is_one_line_and_leaves_nothing(machine):
    shutil.rmtree(machine.hub / "google")
    assert_one_line(
        machine.set_up(machine.peers),
        r"got no answer from https://github.com/google/airio \(fatal: .*\)",
    )
    assert {path.name for path in machine.peers.iterdir()} == {"t5x"}


def test_a_checkout_named_as_the_folder_is_refused(machine):
    assert machine.set_up(machine.peers).returncode == 0
    wrong = machine.set_up(machine.peers / "t5x")
    assert_one_line(wrong, f"got {machine.peers}/t5x/t5x without a folder t5x")


def test_a_t5x_that_fails_is_one_line(machine):
    assert machine.set_up(machine.peers).returncode == 0
    (machine.peers / "t5x" / "t5x" / "train.py").write_text("import jax.of_old\n")
    assert_one_line(
        machine.set_up(machine.peers),
        rf"got T5X in {machine.peers}, which fails \(ModuleNotFoundError: .*\)",
    )
