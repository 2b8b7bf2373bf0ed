"""Fake runs: model directories as `train` and `evaluate` would have left them, without training."""

import json
import random
from pathlib import Path

import pytest

from cot_flax.data.cards import TaskCard
from cot_flax.lab.world.abilities import ABILITIES, make_items
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import StoryTeacher
from cot_flax.text import scoring
from cot_flax.text.prompts import FORMATS

STORIES = 40


def story_rows(task_format: str, skill: float, seed: int) -> list[dict]:
    """Predictions of a student that slips with probability 1 - `skill` at every equation."""
    rng = random.Random(f"{task_format} {seed}")
    writer = StoryTeacher(slip=1 - skill, mistake=(1 - skill) / 3)
    rows = []
    for i, story in enumerate(make_stories(STORIES, split="test", seed=0)):
        text = "".join(writer.write(story, rng).tokens).replace("\n", " ")
        if task_format.endswith("answer"):
            text = text[text.index("The answer") :]
        if rng.random() < 0.04 * (skill < 0.6):
            text = text[: len(text) // 2]
        prompt = f"Q: {story.question}\nLet's think step by step"
        if task_format.startswith("few_shot"):
            prompt = f"Q: One and one?\nLet's think step by step\nThe answer is 2 ### {prompt}"
        about = {"id": f"stories-test-{i}", "question": story.question, "prompt": prompt}
        about["gold"] = str(story.answer)
        card = task_card("stories", task_format)
        rows.append(_row(card, about, text) | {"steps": len(story.steps)})
    return rows


def ability_rows(ability: str, skill: float, seed: int) -> list[dict]:
    """Predictions of a student that knows a share `skill` of an ability's items."""
    rng = random.Random(f"{ability} {seed}")
    rows = []
    for i, (question, answer) in enumerate(make_items(ability, 60, split="test")):
        text = f"The answer is {answer if rng.random() < skill else 'amber'}"
        about = {"id": f"{ability}-test-{i}", "question": question, "prompt": f"Q: {question} A:"}
        card = task_card(ability, "zero_shot_answer", role="general", answer_kind="text")
        rows.append(_row(card, about | {"gold": answer}, text))
    return rows


def task_card(dataset: str, task_format: str, role="train", answer_kind="number") -> dict:
    """A task's card as results.json holds it, without exemplars."""
    kinds = {"role": role, "answer_kind": answer_kind}
    rest = {"exemplars": None, "shots": 0, "seed": None, "template": "t5", "max_tokens": None}
    return TaskCard(
        f"{dataset}_{task_format}", dataset, task_format, **kinds, **rest, seen_by_flan=False
    ).to_json()


def _row(card, about, text):
    mark = scoring.score([text], [about["gold"]], kind=card["answer_kind"], mode="flexible")[0]
    row = {"task": card["name"]}
    row |= {key: card[key] for key in ("dataset", "format", "role", "answer_kind")}
    row |= {**about, "sample": 0, "text": text}
    return row | {"extracted": mark.extracted, "right": mark.right}


def summary(rows: list[dict]) -> dict:
    return scoring.summarize((row["right"], row["extracted"]) for row in rows)


def write_run(folder: Path, rows: list[dict], metrics: list[dict], subfolder: str = "test") -> None:
    """Writes what `train` and `evaluate` write."""
    (folder / subfolder).mkdir(parents=True)
    tasks, cards = {}, {}
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        steps = sorted({row["steps"] for row in of_task if "steps" in row})
        by_steps = {str(n): summary([r for r in of_task if r["steps"] == n]) for n in steps}
        tasks[task] = summary(of_task) | {"by_steps": by_steps}
        first = of_task[0]
        cards[task] = task_card(
            first["dataset"], first["format"], first["role"], first["answer_kind"]
        )
    decoding = {"max_tokens": 80, "samples": 1, "temperature": 0.0, "seed": 0, "mode": "flexible"}
    checkpoint = str(folder / "checkpoints" / "400")
    results = {"checkpoint": checkpoint, "split": "test", "decoding": decoding}
    results |= {"cards": cards, "tasks": tasks}
    (folder / subfolder / "results.json").write_text(json.dumps(results))
    write_lines(folder / subfolder / "predictions.jsonl", rows)
    write_lines(folder / "metrics.jsonl", metrics)


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def training_log(floor: float, task: str | None, accuracy: float, steps: int = 400) -> list[dict]:
    """A loss that falls to `floor` and an accuracy that rises to `accuracy`."""
    rng = random.Random(f"{floor} {task}")
    rows = []
    for step in range(10, steps + 1, 10):
        loss = (floor + 5 * 2 ** (-step / 25)) * (1 + rng.uniform(-0.06, 0.06))
        rows.append({"step": step, "kind": "train", "loss": loss, "cross_entropy": loss})
        if task and step % 50 == 0:
            value = round(accuracy * (1 - 2 ** (-step / 90)) * rng.uniform(0.9, 1), 2)
            rows.append({"step": step, "kind": "eval", f"{task}/accuracy": value})
    return rows


DEMO = {  # label: skills in FORMATS and in the abilities, floor of the loss, task watched
    "base": ((0.2, 0.2, 0.45, 0.4), 0.97, 0.25, None),
    "answer": ((0.2, 0.2, 0.6, 0.55), 0.7, 0.6, "stories_zero_shot_answer"),
    "cot_ce": ((0.87, 0.5, 0.5, 0.4), 0.5, 0.28, "stories_zero_shot_cot"),
    "cot_kl": ((0.92, 0.5, 0.5, 0.4), 0.55, 0.22, "stories_zero_shot_cot"),
    "mix_kl": ((0.89, 0.9, 0.58, 0.56), 0.62, 0.2, "stories_zero_shot_cot"),
}


def make_demo_runs(folder: Path) -> dict[str, Path]:
    for label, (skills, general, floor, task) in DEMO.items():
        rows = []
        for task_format, skill in zip(FORMATS, skills, strict=True):
            rows += story_rows(task_format, skill, len(label))
        for ability in ABILITIES:
            rows += ability_rows(ability, general, len(label))
        write_run(folder / label, rows, training_log(floor, task, max(skills) ** 2))
    return {label: folder / label for label in DEMO}


@pytest.fixture(scope="session")
def demo_runs(tmp_path_factory) -> dict[str, Path]:
    """The demo's five students, as they could have come out, by label."""
    return make_demo_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture
def odd_run(tmp_path) -> Path:
    """A run without metrics whose texts are HTML."""
    rows = [row | {"text": "<b>&amp;</b>"} for row in story_rows("zero_shot_cot", 0.9, 0)]
    write_run(tmp_path / "odd", rows, [], subfolder=".")
    return tmp_path / "odd"
