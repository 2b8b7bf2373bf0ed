"""launch/versions.py and the constraints that it makes; launch/bisect_upgrades.py."""

import itertools
import os
import runpy
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

LAUNCH = Path(__file__).resolve().parents[1] / "launch"
VERSIONS = SimpleNamespace(**runpy.run_path(str(LAUNCH / "versions.py")))
BISECT = SimpleNamespace(**runpy.run_path(str(LAUNCH / "bisect_upgrades.py")))
TESTED = ["data", "teach", "report", "dev"]  # what launch/test.sh installs
CONSTRAINTS = sorted((LAUNCH / "constraints").iterdir())


def asked(extras=TESTED):
    return [Requirement(line) for line in VERSIONS.requirements(extras)]


def kept(path):
    return dict(line.split("==") for line in path.read_text().splitlines())


def test_setup_py_is_read_without_setuptools(monkeypatch):
    monkeypatch.setitem(sys.modules, "setuptools", None)
    names = [requirement.name for requirement in asked(["tpu", "report"])]
    assert names[-2:] == ["jax", "matplotlib"]
    assert sys.modules["setuptools"] is None


def test_the_lowest_versions_are_the_highest_of_all_lower_bounds():
    lines = ["A_b[c]>=1.9", "a-B>=1.10,<2", "d==3.0", "e>=0.36"]
    assert VERSIONS.lowest(lines) == {"a-b": "1.10", "d": "3.0", "e": "0.36"}
    everything = VERSIONS.requirements(TESTED)
    assert VERSIONS.lowest(everything).keys() == {canonicalize_name(r.name) for r in asked()}


def test_what_is_installed_is_what_an_index_has(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name, version in (("A_b.c", "1.0+cpu"), ("d", "2.0.post1"), ("local", "3.0")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (tmp_path / "local-3.0.dist-info" / "direct_url.json").write_text("{}")
    expected = "a-b-c==1.0\nd==2.0.post1"
    assert VERSIONS.as_constraints(VERSIONS.installed()) == expected


def test_a_row_counts_errors_as_failures_and_a_run_without_results(tmp_path):
    results = tmp_path / "results.xml"
    assert VERSIONS.counts(results) == ["-", "-", "-"]
    suite = '<testsuite errors="1" failures="2" skipped="4" tests="20" time="3.5"/>'
    results.write_text(f"<testsuites>{suite}</testsuites>")
    assert VERSIONS.counts(results) == ["13", "3", "4"]


def test_each_python_that_setup_py_takes_has_constraints():
    assert [path.name for path in CONSTRAINTS] == ["3.11.txt", "3.12.txt", "3.13.txt"]


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.stem)
def test_constraints_are_what_setup_py_asks_for(path):
    """Every one has a version of the index: no path, no build of a machine, no editable folder."""
    versions = kept(path)
    for name, version in versions.items():
        assert name == canonicalize_name(name)
        assert Version(version).local is None
    environment = {"python_version": path.stem, "extra": ""}
    for requirement in asked():
        if not requirement.marker or requirement.marker.evaluate(environment):
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (str(requirement), version)
    assert not {"cot-flax", "nvidia-cublas", "triton"} & versions.keys()


def test_every_lower_bound_was_tested():
    """`3.11=lowest` of launch/matrix.sh installs them; a bound that is raised wants it again."""
    versions = kept(LAUNCH / "constraints" / "3.11.txt")
    for name, bound in VERSIONS.lowest(VERSIONS.requirements(TESTED)).items():
        assert Version(versions[name]) == Version(bound), name


def release(version, *requires):
    return BISECT.Release(version, tuple(map(Requirement, requires)))


def test_packages_move_together_as_far_as_one_demands_it():
    old = {
        "jax": release("1", "jaxlib<=1"),
        "jaxlib": release("1"),
        "flax": release("1", "jax", "gone"),
        "gone": release("1"),
        "alone": release("1", "jax>=1", "absent_here"),
    }
    new = {
        "jax": release("2", "jaxlib<=2,>=2"),
        "jaxlib": release("2"),
        "flax": release("2", "jax>=2", "new.name"),
        "new-name": release("5"),
        "alone": release("2.dev1", "jax"),
    }
    assert BISECT.companions(old, new) == {
        "jax": {"jaxlib"},
        "jaxlib": {"jax"},  # the old jax does not bear it
        "flax": {"jax", "new-name"},
        "gone": {"flax"},  # the old flax wants it
        "alone": set(),
        "new-name": set(),
    }


@pytest.mark.parametrize(
    "culprits", [*itertools.combinations("abcdefgh", 1), "ah", "bc", "dg", "adg", "abcdefgh"]
)
def test_the_smallest_set_of_upgrades_is_found(culprits):
    """d comes with c, f and g with one another."""
    beside = {name: set() for name in "abcdefgh"} | {"d": {"c"}, "f": {"g"}, "g": {"f"}}
    tried = []

    def fails(upgrades):
        assert all(beside[name] <= upgrades for name in upgrades)
        tried.append(upgrades)
        return set(culprits) <= upgrades

    needed = BISECT.find_needed(beside, fails)
    upgraded = BISECT.with_companions(needed, beside)
    assert upgraded == BISECT.with_companions(culprits, beside)
    for name in needed:
        others = [other for other in needed if other != name]
        assert not set(culprits) <= BISECT.with_companions(others, beside)
    assert len(tried) == len(set(tried))
    assert len(tried) <= 4 * len(needed)  # 3 for the halves of 8, 1 to see whether that is all


def test_a_companion_that_fails_alone_is_named_without_what_wants_it():
    beside = {"a": {"z"}, "z": set(), "b": set()}
    assert BISECT.find_needed(beside, lambda upgrades: "z" in upgrades) == ("z",)


def wheel(folder, name, version, value, requires=()):
    """One module `NAME` with `value`, as pip installs it."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{name}.py": f"value = {value!r}\n",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {line}\n" for line in requires),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(path, text)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An environment, and a folder that pip takes for its index."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("red", "blue", "green", "white"):
        wheel(tmp_path, name, "1.0", 1)
    wheel(tmp_path, "black", "1.0", 1, ["white<2"])
    wheel(tmp_path, "red", "2.0", 2)
    wheel(tmp_path, "blue", "2.0", 2, ["green>=2"])
    wheel(tmp_path, "green", "2.0", 2, ["added"])
    wheel(tmp_path, "added", "1.0", 2)
    wheel(tmp_path, "black", "2.0", 2, ["white>=2"])
    wheel(tmp_path, "white", "2.0", 2)
    names = ("red", "blue", "green", "white", "black")
    (tmp_path / "good.txt").write_text("".join(f"{name}==1.0\n" for name in names))
    (tmp_path / "bad.txt").write_text("".join(f"{name}==2.0\n" for name in names) + "added==1.0\n")
    venv.create(tmp_path / "environment", with_pip=True)
    return tmp_path


def bisect(index, program):
    command = ["bisect_upgrades.py", index / "environment", index / "good.txt", index / "bad.txt"]
    return subprocess.run(
        [sys.executable, LAUNCH / command[0], *command[1:], "--", "python", "-c", program],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow  # an environment, and pip two dozen times: half a minute
def test_a_package_that_breaks_a_command_is_named_from_real_wheels(index):
    done = bisect(index, "import black; assert black.value == 1")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "black 1.0 -> 2.0 (and so white 1.0 -> 2.0)"
    assert done.stdout.splitlines()[:2] == ["0 of 6 upgrades: passes", "6 of 6 upgrades: fails"]
    python = index / "environment" / "bin" / "python"
    command = [python, "-m", "pip", "list", "--format=freeze", "--exclude=pip"]
    command.append("--exclude=setuptools")
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert sorted(listed.split()) == [
        "black==2.0",
        "blue==1.0",
        "green==1.0",
        "red==1.0",
        "white==2.0",
    ]
    program = "import importlib.util as u, red; assert red.value == 1 or not u.find_spec('added')"
    both = bisect(index, program)
    assert both.stdout.splitlines()[-2:] == ["red 1.0 -> 2.0", "added absent -> 1.0"], both.stderr
    for program, message in (
        ("raise SystemExit('always')", "got a failure with GOOD; expected a command that passes"),
        ("pass", "got no failure with BAD; expected a command that fails with it; see "),
    ):
        refused = bisect(index, program)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"bisect_upgrades: {message}")
    assert (index / "environment" / "bisect.log").read_text().count("always") == 1


def test_a_bisection_wants_its_arguments():
    done = subprocess.run(
        [sys.executable, LAUNCH / "bisect_upgrades.py", "environment"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "bisect_upgrades: got ['environment']; expected ENVIRONMENT GOOD BAD -- COMMAND...; "
        "see its first lines\n"
    )
