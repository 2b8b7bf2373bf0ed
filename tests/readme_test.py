"""The README's example does what the README says."""

import itertools
import re
from pathlib import Path

from cot_flax.data.batches import TaskBatches

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_registers_a_data_set_that_gives_batches():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    exec(code, {})
    data = TaskBatches("triage_zero_shot_cot", {"inputs": 96, "targets": 96}, batch_size=1)
    (batch,) = itertools.islice(data.batches(), 1)
    prompt = bytes(int(i) - 3 for i in batch["encoder_input_tokens"][0] if i > 1).decode()
    target = bytes(int(i) - 3 for i in batch["decoder_target_tokens"][0] if i > 1).decode()
    assert prompt == "Q: Is 7 + 5 more than 11?\nLet's think step by step"
    assert target == "7 + 5 = 12. 12 is more than 11.\nThe answer is yes"


def test_the_files_that_the_readme_names_are_there():
    text = README.read_text()
    root = README.parent
    for path in re.findall(r"`((?:cot_flax|launch|tasks|gin|tests)/[\w/.]*)`", text):
        assert (root / path).exists(), path
    for path in re.findall(r"(?:experiments|objectives)/\w+\.gin", text):
        assert (root / "gin" / path).exists(), path
