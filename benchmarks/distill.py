"""`cot-flax distill` on 300 labelled tickets with given chains: one command, minutes, result.

Tickets, labels and chains are made by rules, and the student is a T5 of some 0.3M parameters that
begins with random weights and a vocabulary of these tickets: it shows that the command works from a
file to a report and how long that takes, not what a Flan-T5 learns of real tickets.

    python -m benchmarks.distill --out runs/distill_benchmark
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.harness import record

THINGS = {
    "billing": ("invoice", "refund", "payment", "receipt", "discount"),
    "delivery": ("parcel", "courier", "package", "shipment", "crate"),
    "login": ("password", "account", "code", "username", "token"),
    "repair": ("screen", "battery", "charger", "keyboard", "hinge"),
}
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Iris", "Jon")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
OPENINGS = ("Hello,", "Hi there,", "Good morning,", "Dear team,", "To whom it may concern,")
TROUBLES = ("is wrong", "is missing", "does not work", "was late", "needs a check")
STUDENT = """include 'models/world.gin'
from __gin__ import dynamic_registration
from cot_flax.students import t5
t5.T5Config.vocab_size = 640
"""


def tickets(count: int, seed: int) -> list[dict]:
    """Different tickets, each with its chain and label."""
    rng, made = random.Random(seed), {}
    while len(made) < count:
        team = rng.choice(list(THINGS))
        thing, trouble = rng.choice(THINGS[team]), rng.choice(TROUBLES)
        name, day = rng.choice(NAMES), rng.choice(DAYS)
        text = f"{rng.choice(OPENINGS)} on {day} my {thing} {trouble}. Please help. {name}"
        made[text] = {
            "ticket": text,
            "reasoning": f"{name} writes about a {thing}. The {thing} belongs to {team}.",
            "team": team,
        }
    return list(made.values())


def vocabulary(texts: list[str], place: Path) -> None:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(place.with_suffix("")), vocab_size=400,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    made = tickets(given.count, given.seed)
    file = given.out / "tickets.jsonl"
    file.write_text("".join(json.dumps(ticket) + "\n" for ticket in made))
    (given.out / "student.gin").write_text(STUDENT)
    words = ["Q: A: Let's think step by step. The answer is"]
    texts = [f"{t['ticket']} {t['reasoning']} The answer is {t['team']}." for t in made]
    vocabulary(texts + 50 * words, given.out / "words.model")
    command = [
        *(sys.executable, "-m", "cot_flax.cli", "distill", str(file)),
        *("--question", "ticket", "--rationale", "reasoning", "--answer", "team"),
        *("--student", str(given.out / "student.gin")),
        *("--vocabulary", str(given.out / "words.model"), "--out", str(given.out / "run")),
    ]
    start = time.perf_counter()
    subprocess.run(command, check=True)
    minutes = (time.perf_counter() - start) / 60
    results = json.loads((given.out / "run/student/test/results.json").read_text())
    stages = json.loads((given.out / "run/stages.json").read_text())["steps"]
    facts = json.loads((given.out / "run/student/run.json").read_text())
    found = {
        "tickets": given.count,
        "parameters": facts["student"]["parameters"],
        "steps": facts["training"]["steps"],
        "minutes": round(minutes, 2),
        "seconds_by_stage": {name: step["seconds"] for name, step in stages.items()},
        "tasks": {
            task: {name: summary[name] for name in ("accuracy", "count", "majority")}
            for task, summary in results["tasks"].items()
        },
    }
    record("distill", found)


if __name__ == "__main__":
    main()
