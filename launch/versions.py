"""The versions that the launch scripts install and test.

python launch/versions.py lowest EXTRAS   setup.py's lower bounds, as constraints of pip
python launch/versions.py installed       what is installed beside this Python, as constraints
python launch/versions.py summary         what a result depends on most, in one line
python launch/versions.py row RESULTS     the same and pytest's counts, as a row of a table
"""

import contextlib
import platform
import re
import runpy
import sys
from importlib.metadata import distributions, version
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]


def requirements(extras: list[str]) -> list[str]:
    """What setup.py asks for. A bare Python has no setuptools, so a stand-in takes its place."""
    asked = {}
    stand_in = SimpleNamespace(find_packages=lambda **_: [], setup=lambda **all: asked.update(all))
    with mock.patch.dict(sys.modules, setuptools=stand_in), contextlib.chdir(ROOT):
        runpy.run_path("setup.py")
    return asked["install_requires"] + [
        requirement for extra in extras for requirement in asked["extras_require"][extra]
    ]


def canonical(name: str) -> str:
    """The spelling in which an index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lowest(asked: list[str]) -> dict[str, str]:
    """The lower bound of each package: the highest, where several requirements have one."""
    bounds = {}
    for requirement in asked:
        name, bound = re.match(r"([\w.-]+)(?:\[.*\])?[>=]=([\d.]+)", requirement).groups()
        bounds.setdefault(canonical(name), []).append(bound)
    return {
        name: max(several, key=lambda bound: [int(number) for number in bound.split(".")])
        for name, several in bounds.items()
    }


def installed() -> dict[str, str]:
    """What came from an index, without what a build adds to a version (2.13.0+cpu is 2.13.0)."""
    return {
        canonical(found.name): found.version.partition("+")[0]
        for found in distributions()
        if not found.read_text("direct_url.json")
    }


def as_constraints(versions: dict[str, str]) -> str:
    return "\n".join(f"{name}=={number}" for name, number in sorted(versions.items()))


def summary() -> dict[str, str]:
    return {"Python": platform.python_version()} | {
        name: version(name) for name in ("jax", "flax", "numpy")
    }


def counts(results: Path) -> list[str]:
    """How many tests passed, failed and were skipped; `-` where pytest was not reached."""
    if not results.exists():
        return ["-"] * 3
    suite = ElementTree.parse(results).getroot().find("testsuite")
    total, skipped, *failed = (
        int(suite.get(name)) for name in ("tests", "skipped", "failures", "errors")
    )
    return [str(total - skipped - sum(failed)), str(sum(failed)), str(skipped)]


def main(verb: str, argument: str = "") -> None:
    if verb == "lowest":
        print(as_constraints(lowest(requirements(argument.split(",")))))
    elif verb == "installed":
        print(as_constraints(installed()))
    elif verb == "summary":
        print(", ".join(f"{name} {number}" for name, number in summary().items()))
    elif verb == "row":
        print(" | ".join([*summary().values(), *counts(Path(argument))]))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
