"""The core runs without what extras install; a teacher, without TensorFlow."""

import subprocess
import sys

import pytest

from cot_flax.errors import EXTRAS

HIDDEN = [*EXTRAS["data"], "t5x", "gin", "torch", "zstandard"]
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[2:]:
    sys.modules[name] = None  # an import of it raises
package = importlib.import_module("cot_flax." + sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
    print(module.name)
"""


def modules_imported(package):
    own = {"teacher": "teach", "serving": "serve"}
    others = [extra for extra in EXTRAS if extra not in ("data", own.get(package))]
    hidden = [*HIDDEN, *(library for extra in others for library in EXTRAS[extra])]
    command = [sys.executable, "-c", IMPORT_ALL, package, *hidden]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.split()


@pytest.mark.parametrize(
    "package",
    [
        "text",
        "chains",
        "teacher",
        "students",
        "objectives",
        "generation",
        "training",
        "weights",
        "planning",
        "lab.world",
        "serving",
    ],
)
def test_imports_without_tensorflow(package):
    names = modules_imported(package)
    assert names and all(name.startswith(f"cot_flax.{package}.") for name in names)
