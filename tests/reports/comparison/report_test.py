"""Tests of the HTML page."""

import io
import json
import math
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from rich.console import Console
from support.reports import ability_rows, write_run

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.lab.world.abilities import ABILITIES
from cot_flax.reports import comparison
from cot_flax.reports.comparison import page
from cot_flax.reports.comparison.cells import Cell
from cot_flax.run_folder import Run


class Outline(HTMLParser):
    """Checks that tags close in order and gathers text, tags and attributes."""

    VOID = ("meta", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.words, self.links, self.ids = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data.strip())

    @property
    def text(self) -> str:
        return " ".join(word for word in self.words if word)


def test_page_is_whole_and_needs_nothing_beside_it(demo_runs, tmp_path):
    comparison.write(tmp_path / "new" / "report.html", demo_runs, base="base")
    html = Outline((tmp_path / "new" / "report.html").read_text())
    assert "script" not in html.tags and "link" not in html.tags
    assert {link[:1] for link in html.links} == {"#"}
    assert {link[1:] for link in html.links} <= set(html.ids)
    assert len(set(html.ids)) == len(html.ids)
    # Four formats by steps, one loss, two tasks watched in training.
    assert html.tags.count("svg") == 7
    for title in ("Accuracy", "Accuracy by number of steps", "Learning curves", "Sample chains"):
        assert title in html.words
    assert "cot-flax report" in html.text and str(demo_runs["cot_kl"]) in html.text
    assert f"--base {demo_runs['base']}" in html.text
    assert "percentage points against base" in html.text
    assert "max_tokens 80" in html.text


def test_page_has_the_numbers_of_results_json(demo_runs, tmp_path):
    comparison.write(tmp_path / "report.html", demo_runs)
    html = Outline((tmp_path / "report.html").read_text())
    for folder in demo_runs.values():
        tasks = json.loads((folder / "test" / "results.json").read_text())["tasks"]
        for task in tasks.values():
            value, low, high = (
                f"{100 * task[key]:.1f}" for key in ("accuracy", "accuracy_low", "accuracy_high")
            )
            assert f"{value} {low}–{high}" in html.text


def test_page_shows_every_runs_answer_to_a_question(demo_runs, tmp_path):
    comparison.write(tmp_path / "report.html", demo_runs)
    html = Outline((tmp_path / "report.html").read_text())
    shown = 6 + 2 * len(ABILITIES)  # stories, and two questions of each general ability
    assert html.tags.count("article") == shown
    assert html.tags.count("dd") == shown * len(demo_runs)
    marks = [word for word in html.words if word.startswith(("✓ right: ", "✗ wrong: "))]
    assert len(marks) == shown * len(demo_runs) and len({mark[0] for mark in marks}) == 2


def test_an_own_data_set_of_labels_can_be_looked_at(tmp_path):
    """Texts for answers, no steps, one role or the other."""
    for role in ("train", "transfer", "general"):
        rows = [row | {"role": role} for row in ability_rows("word_sorting", 0.5, 0)]
        write_run(tmp_path / role, rows, [])
        comparison.write(tmp_path / "report.html", {"mine": tmp_path / role})
        html = Outline((tmp_path / "report.html").read_text())
        assert html.tags.count("article") == (2 if role == "general" else 6)
        assert ("General ability" in html.words) == (role == "general")
        assert ("Reasoning" in html.words) == (role != "general")


def test_outputs_of_another_format_are_marked(tmp_path):
    write_run(tmp_path / "run", ability_rows("word_sorting", 0.5, 0), [])
    path = tmp_path / "run" / "test" / "results.json"
    results = json.loads(path.read_text())
    for share, is_marked in ((0.04, False), (0.98, True)):
        results["tasks"]["word_sorting_zero_shot_answer"]["off_format_rate"] = share
        path.write_text(json.dumps(results))
        comparison.write(tmp_path / "report.html", {"run": tmp_path / "run"})
        assert ("98.0% off format" in (tmp_path / "report.html").read_text()) == is_marked


def test_prompts_that_the_vocabulary_cannot_write_are_marked(tmp_path):
    write_run(tmp_path / "run", ability_rows("word_sorting", 0.5, 0), [])
    path = tmp_path / "run" / "test" / "results.json"
    results = json.loads(path.read_text())
    results["tasks"]["word_sorting_zero_shot_answer"]["prompts_with_unknown"] = 1200
    path.write_text(json.dumps(results))
    comparison.write(tmp_path / "report.html", {"run": tmp_path / "run"})
    text = (tmp_path / "report.html").read_text()
    assert text.count("1,200 prompts with unknown characters") == 1


def test_a_wide_table_says_that_it_scrolls(tmp_path):
    rows = [
        row | {"task": f"t{i}", "dataset": f"t{i}", "role": "general"}
        for i in range(12)
        for row in ability_rows("word_sorting", 0.5, 0)
    ]
    write_run(tmp_path / "run", rows, [])
    comparison.write(tmp_path / "report.html", {"run": tmp_path / "run"})
    text = (tmp_path / "report.html").read_text()
    assert "13 columns: the table scrolls sideways" in text  # with the mean
    assert "@media (min-width: 1364px) { .hint { display: none; } }" in text


def test_texts_and_labels_are_escaped(odd_run, tmp_path):
    comparison.write(tmp_path / "report.html", {"<i>run</i>": odd_run})
    html = Outline((tmp_path / "report.html").read_text())
    assert "<b>&amp;</b>" in html.words and "<i>run</i>" in html.text and "i" not in html.tags


def test_missing_parts_are_said(demo_runs, tmp_path):
    (tmp_path / "untested").mkdir()
    runs = {"tested": demo_runs["cot_kl"], "untested": tmp_path / "untested"}
    comparison.write(tmp_path / "report.html", runs)
    html = Outline((tmp_path / "report.html").read_text())
    assert "untested has no results.json" in html.text
    assert "untested has no metrics.jsonl" in html.text
    assert "no prediction" in html.words
    with pytest.raises(UserError, match=r"got no results\.json"):
        comparison.write(tmp_path / "report.html", {"untested": tmp_path / "untested"})


def test_leaks_that_runs_share_are_said_once(tmp_path):
    same, other = (f"stories/test: of 240 questions {n} stand in the training data" for n in (0, 9))
    runs = {}
    for label, leaks in (("ce", [same]), ("kl", [same]), ("more", [other])):
        write_run(tmp_path / label, ability_rows("word_sorting", 0.5, 0), [])
        path = tmp_path / label / "test" / "results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"leaks": leaks}))
        runs[label] = tmp_path / label
    comparison.write(tmp_path / "report.html", runs)
    console = Console(file=io.StringIO(), width=200)
    comparison.print_table(runs, console)
    for text in (Outline((tmp_path / "report.html").read_text()).text, console.file.getvalue()):
        assert (text.count(same), text.count(other)) == (1, 1)
        assert f"ce, kl have {same}." in text
        assert f"more has {other}." in text


def test_the_best_checkpoints_are_named_with_the_roles_of_their_tasks(tmp_path):
    """The first of equals; a metric that was never measured has none."""
    write_run(tmp_path / "run", ability_rows("word_sorting", 0.5, 0), [])
    task = "word_sorting_zero_shot_answer"
    goals = {f"{task}/accuracy": "max", "loss": "min", "x/accuracy": "max"}
    run_folder.write_facts(tmp_path / "run", {"training": {"best_metrics": goals}})
    values = [(100, 0.2, 3.0), (200, 0.5, 2.5), (300, 0.5, math.nan), (400, 0.3, 2.75)]
    rows = [
        {"step": step, "kind": "eval", f"{task}/accuracy": accuracy, "loss": loss}
        for step, accuracy, loss in values
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "run" / run_folder.METRICS).write_text(lines)
    comparison.write(tmp_path / "report.html", {"run": tmp_path / "run"})
    text = Outline((tmp_path / "report.html").read_text()).text
    assert f"run has its best {task}/accuracy (general), 0.5, at step 200: " in text
    assert f"run has its best loss, 2.5, at step 200: {tmp_path}/run/best/loss" in text
    assert "its best x/accuracy" not in text


def test_runs_decoded_differently_are_told_apart(tmp_path):
    def run(label, temperature):
        return Run(
            label,
            tmp_path,
            {"split": "test", "decoding": {"temperature": temperature, "length_penalty": None}},
            [],
            [],
        )

    runs = [run("a", 0), run("b", 0.7), run("c", 0), Run("d", tmp_path, {}, [], [])]
    assert page.decodings(runs) == [
        ("split test, temperature 0", ["a", "c"]),
        ("split test, temperature 0.7", ["b"]),
    ]


def test_shades():
    assert page.shade(None, "accuracy") == "transparent"
    assert page.shade(Cell(1.0, 0, 1), "accuracy") == "rgba(0, 114, 178, 0.220)"
    assert page.shade(Cell(-0.25, 0, 0), "change") == "rgba(213, 94, 0, 0.110)"


def test_import_is_light():
    heavy = "{'jax', 'flax', 'tensorflow', 'seqio', 't5x'}"
    code = "import sys; from cot_flax.reports import comparison, preparation; "
    code += f"print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
