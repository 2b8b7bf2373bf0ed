"""Without T5X the plug-in says in one line where it is."""

import subprocess
import sys

IMPORT = """
import sys
sys.modules["t5x"] = None  # an import of it raises
from cot_flax.errors import UserError
try:
    import cot_flax.hosts.t5x
except UserError as error:
    print(error)
"""


def test_one_line_says_how_to_get_it():
    command = [sys.executable, "-c", IMPORT]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.startswith("got no T5X")
    assert "cc342d41" in result.stdout
    assert len(result.stdout.splitlines()) == 1
