"""Names the package whose new version makes a command fail.

    python launch/bisect_upgrades.py ENVIRONMENT GOOD BAD -- COMMAND...

COMMAND, a program of ENVIRONMENT (a virtual environment, which is changed) or of PATH, passes with
the versions of GOOD and fails with those of BAD, two files with a line NAME==VERSION a package.
Halves of the upgrades between them are installed until one is left, or several of which each is
needed: log2(packages) runs of COMMAND for each that is named. Packages of which pip would refuse
one new and the other old are upgraded together. The environment is left with what was named.
"""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Versions = dict[str, str]  # by name; an absent package has none
LOG = "bisect.log"  # in the environment's folder


@dataclass(frozen=True)
class Release:
    version: str
    requires: tuple[Requirement, ...]


def companions(old: dict[str, Release], new: dict[str, Release]) -> dict[str, set[str]]:
    """What has to be upgraded beside each package, as one of both demands it of the other.

    Args:
      old, new: both releases of the packages that differ; an absent package has none.
    """
    beside = {name: set() for name in old.keys() | new.keys()}
    for releases, others in ((new, old), (old, new)):
        for name, release in releases.items():
            for requirement in release.requires:
                needed = canonicalize_name(requirement.name)
                if needed not in beside or (
                    needed in others
                    and requirement.specifier.contains(others[needed].version, prereleases=True)
                ):
                    continue
                if releases is new:  # the upgrade wants the other's
                    beside[name].add(needed)
                else:  # what is not upgraded does not bear the other's upgrade
                    beside[needed].add(name)
    return beside


def with_companions(names: Iterable[str], beside: dict[str, set[str]]) -> frozenset[str]:
    found, waiting = set(), set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= beside[name] - found
    return frozenset(found)


def find_needed(
    beside: dict[str, set[str]], fails: Callable[[frozenset[str]], bool]
) -> tuple[str, ...]:
    """The upgrades that together, with their companions, fail, and none of which can be left out.

    Junker's QuickXplain (AAAI 2004), with the halves of a list in place of a tree.

    Args:
      beside: of `companions`.
      fails: whether a set of upgrades, with all companions, fails; without any, it does not, and
        with all it does. Called once for each set.
    """
    fails = functools.cache(fails)
    # A package comes after its companions, or it would be named in their place.
    order = sorted(beside, key=lambda name: (len(with_companions([name], beside)), name))
    needed: list[str] = []
    while not needed or not fails(with_companions(needed, beside)):
        passing, failing = 0, len(order)
        while failing - passing > 1:
            middle = (passing + failing) // 2
            if fails(with_companions(needed + order[:middle], beside)):
                failing = middle
            else:
                passing = middle
        needed.append(order[failing - 1])
        order = order[: failing - 1]
    return tuple(needed)


def stop(got: str, expected: str, remedy: str) -> None:
    print(f"bisect_upgrades: got {got}; expected {expected}; {remedy}", file=sys.stderr)
    sys.exit(2)


def read_versions(path: Path) -> Versions:
    lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in pairs}


@dataclass(frozen=True)
class Environment:
    """A virtual environment, changed by its own pip."""

    folder: Path

    def pip(self, *words: str) -> str:
        command = [str(self.folder / "bin" / "python"), "-m", "pip", *words]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            stop(f"exit code {done.returncode} of pip {words[0]}", "0", "see what pip says above")
        return done.stdout

    def releases(self, versions: Versions) -> dict[str, Release]:
        """The metadata of packages that need not be installed."""
        if not versions:
            return {}
        words = ["--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-"]
        report = json.loads(self.pip("install", *words, *pins(versions)))
        return {
            canonicalize_name(item["metadata"]["name"]): Release(
                item["metadata"]["version"],
                tuple(
                    requirement
                    for requirement in map(Requirement, item["metadata"].get("requires_dist", []))
                    if not requirement.marker or requirement.marker.evaluate({"extra": ""})
                ),
            )
            for item in report["install"]
        }

    def change(self, versions: Versions, absent: Iterable[str]) -> None:
        """Leaves packages that are neither in `versions` nor `absent` as they are."""
        if absent:
            self.pip("uninstall", "-qq", "--yes", *absent)  # not a word of what is not there
        if versions:
            self.pip("install", "--quiet", "--no-deps", *pins(versions))

    def passes(self, command: list[str]) -> bool:
        """Runs a command; what it prints is added to the log."""
        path = os.pathsep.join([str(self.folder.resolve() / "bin"), os.environ["PATH"]])
        with open(self.folder / LOG, "a") as log:
            done = subprocess.run(
                command, env=os.environ | {"PATH": path}, stdout=log, stderr=log, check=False
            )
        return done.returncode == 0


def pins(versions: Versions) -> list[str]:
    return [f"{name}=={version}" for name, version in versions.items()]


def main(environment: Environment, good: Versions, bad: Versions, command: list[str]) -> None:
    differ = {name for name in good.keys() | bad.keys() if good.get(name) != bad.get(name)}
    old, new = (
        {name: version for name, version in versions.items() if name in differ}
        for versions in (good, bad)
    )
    beside = companions(environment.releases(old), environment.releases(new))

    def upgrade(names: frozenset[str]) -> None:
        mixed = {name: (new if name in names else old).get(name) for name in differ}
        present = {name: version for name, version in mixed.items() if version}
        environment.change(present, differ - present.keys())

    def fails(names: frozenset[str]) -> bool:
        upgrade(names)
        passed = environment.passes(command)
        print(
            f"{len(names)} of {len(differ)} upgrades: {'passes' if passed else 'fails'}", flush=True
        )
        return not passed

    log = environment.folder / LOG
    if fails(frozenset()):
        stop("a failure with GOOD", "a command that passes with it", f"see {log}")
    if not fails(frozenset(differ)):
        stop("no failure with BAD", "a command that fails with it", f"see {log}")
    needed = find_needed(beside, fails)
    upgrade(with_companions(needed, beside))
    print(f"It fails with (what it prints: {log}):")
    for name in needed:
        others = sorted(with_companions([name], beside) - {name})
        moves = [f"{n} {old.get(n, 'absent')} -> {new.get(n, 'absent')}" for n in [name, *others]]
        print(moves[0] + (f" (and so {', '.join(moves[1:])})" if others else ""))


if __name__ == "__main__":
    if len(sys.argv) < 6 or sys.argv[4] != "--":
        stop(f"{sys.argv[1:]}", "ENVIRONMENT GOOD BAD -- COMMAND...", "see its first lines")
    main(
        Environment(Path(sys.argv[1])),
        *(read_versions(Path(path)) for path in sys.argv[2:4]),
        sys.argv[5:],
    )
