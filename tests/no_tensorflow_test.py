"""The core runs where only JAX, flax, optax and orbax are installed."""

import subprocess
import sys

import pytest

IMPORT_ALL = """
import importlib, pkgutil, sys
for name in "tensorflow tensorflow_datasets tensorflow_text seqio t5x gin torch".split():
    sys.modules[name] = None  # an import of it raises
package = importlib.import_module("cot_flax." + sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
    print(module.name)
"""


def modules_imported(package):
    command = [sys.executable, "-c", IMPORT_ALL, package]
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
    ],
)
def test_imports_without_tensorflow(package):
    names = modules_imported(package)
    assert names and all(name.startswith(f"cot_flax.{package}.") for name in names)
