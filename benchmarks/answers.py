"""Counts the difficult endings of tests/fixtures/answer_endings.jsonl that are read right.

Of this checkout, or of another one that PYTHONPATH names, beside math-verify alone on the endings
with numbers; and how many of GSM8K's solutions are read in a second of processor time, the best of
three rounds, where they are given:

    python benchmarks/answers.py [gsm8k/train.jsonl]
    PYTHONPATH=../older python benchmarks/answers.py
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path

from math_verify import parse, verify

from cot_flax.text.answers import extract_answer

ENDINGS = Path(__file__).resolve().parents[1] / "tests/fixtures/answer_endings.jsonl"


def main() -> None:
    rows = [json.loads(line) for line in ENDINGS.read_text(encoding="utf-8").splitlines()]
    total = Counter(row["kind"] for row in rows)
    ours = [
        row
        for row in rows
        if extract_answer(row["text"], mode="flexible", kind=row["kind"]) == row["answer"]
    ]
    right = Counter(row["kind"] for row in ours)
    print(
        f"ours: {len(ours)} of {len(rows)};", *(f"{k} {right[k]} of {n}" for k, n in total.items())
    )
    numbers = [row for row in rows if row["kind"] == "number"]
    print(f"math-verify alone: {sum(map(_verified, numbers))} of {len(numbers)} numbers")
    for row in rows:
        if row not in ours:
            print("  wrong:", row["kind"], "-", row["name"])
    for name in sys.argv[1:]:
        _time(Path(name))


def _verified(row: dict) -> bool:
    found = parse(row["text"])
    if row["answer"] is None:
        return not found
    return verify(parse(row["answer"]), found)


def _time(path: Path) -> None:
    texts = [json.loads(line)["answer"] for line in path.read_text().splitlines()]
    for mode in ("strict", "flexible"):
        seconds = []
        for _ in range(3):
            start = time.process_time()
            for text in texts:
                extract_answer(text, kind="number", mode=mode)
            seconds.append(time.process_time() - start)
        print(f"{path.name}, {mode}: {len(texts) / min(seconds):.0f} texts/s")


if __name__ == "__main__":
    main()
