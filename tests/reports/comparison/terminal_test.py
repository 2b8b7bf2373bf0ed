"""Tests of the tables for the command line."""

import io
import json

from rich.console import Console
from support.reports import task_card

from cot_flax.reports import comparison
from cot_flax.text.prompts import FORMATS


def printed(function, argument, width=80) -> str:
    console = Console(file=io.StringIO(), width=width)
    function(argument, console)
    return console.file.getvalue()


def test_table_fits_eighty_columns(demo_runs):
    runs = demo_runs | {"few-shot + zero-shot mixture": demo_runs["mix_kl"]}
    text = printed(comparison.print_table, runs)
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text

    assert "General ability, continued" in text
    tasks = json.loads((demo_runs["cot_kl"] / "test" / "results.json").read_text())["tasks"]
    row = next(line.split() for line in text.splitlines() if line.startswith("cot_kl"))
    expected = [tasks[f"stories_{name}"]["accuracy"] for name in FORMATS]
    assert row[2:] == [f"{100 * value:.1f}" for value in expected]


def test_results_show_few_and_many_steps_apart():
    part = {"accuracy_low": 0.1, "accuracy_high": 0.9, "parse_failure_rate": 0.05}
    by_steps = {
        str(n): part | {"accuracy": right / 20, "count": 20}
        for n, right in ((1, 20), (2, 15), (3, 8), (4, 5))
    }
    summary = part | {"accuracy": 0.6, "count": 80, "by_steps": by_steps}
    results = {"split": "test", "tasks": {"x": summary}}
    results["cards"] = {"x": task_card("s", "few_shot_cot")}
    text = printed(comparison.print_results, results)
    assert "split test" in text
    (row,) = [line.split() for line in text.splitlines() if "few-shot" in line]
    # (20 + 15) of 40 and (8 + 5) of 40.
    assert row == ["s", "few-shot", "CoT", "60.0", "10.0–90.0", "80", "5.0", "87.5", "32.5"]


def test_labels_have_the_share_of_the_most_frequent_one():
    part = {"accuracy_low": 0.2, "accuracy_high": 0.5, "parse_failure_rate": 0.0, "count": 50}
    results = {"split": "test", "tasks": {"x": part | {"accuracy": 0.34, "majority": 0.4}}}
    results["tasks"]["y"] = part | {"accuracy": 0.5}
    results["cards"] = {name: task_card(name, "few_shot_cot") for name in "xy"}
    text = printed(comparison.print_results, results)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if "few-shot" in line}
    assert rows["x"][-4:] == ["20.0–50.0", "50", "0.0", "40.0"]
    assert rows["y"][-1] == "–"
    assert "majority: right for a student" in text


def test_what_a_calculator_changes_is_a_column():
    part = {"accuracy_low": 0.2, "accuracy_high": 0.5, "parse_failure_rate": 0.0, "count": 50}
    tasks = {"x": part | {"accuracy": 0.34, "accuracy_with_calculator": 0.38}}
    tasks["y"] = part | {"accuracy": 0.5}
    results = {"split": "test", "tasks": tasks}
    results["cards"] = {name: task_card(name, "few_shot_cot") for name in "xy"}
    text = printed(comparison.print_results, results)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if "few-shot" in line}
    assert rows["x"][3:5] == ["34.0", "38.0"] and rows["y"][3:5] == ["50.0", "–"]
    assert "calculated: with the equations" in text
    tasks["x"]["accuracy_with_calculator"] = 0.34
    assert "calculated" not in printed(comparison.print_results, results)


def test_outputs_of_another_format_are_named():
    part = {"accuracy": 0.5, "accuracy_low": 0.2, "accuracy_high": 0.5, "parse_failure_rate": 0.0}
    part |= {"count": 50}
    shares = {"zero_shot_answer": 1.0, "few_shot_cot": 0.3, "zero_shot_cot": 0.04}
    results = {"split": "test", "cards": {name: task_card("s", name) for name in shares}}
    results["tasks"] = {name: part | {"off_format_rate": share} for name, share in shares.items()}
    results["tasks"]["few_shot_cot"]["prompts_with_unknown"] = 7
    text = printed(comparison.print_results, results)
    assert "s few-shot CoT: 7 prompts with unknown characters" in text
    assert "s zero-shot answer: 100.0% of the outputs are a chain" in text
    assert "s few-shot CoT: 30.0% of the outputs are no chain" in text
    assert text.count("% of the outputs") == 2


def test_votes_and_the_other_way_to_read_are_named():
    part = {"accuracy": 0.5, "accuracy_low": 0.2, "accuracy_high": 0.5, "parse_failure_rate": 0.0}
    modes = {"strict_accuracy": 0.41, "flexible_accuracy": 0.5, "mode_disagreement_rate": 0.125}
    votes = {
        f"{name}_at_k": {"2": part, "16": part | {"accuracy": 0.3}} for name in ("maj", "pass")
    }
    results = {"split": "test", "cards": {"x": task_card("s", "zero_shot_cot")}}
    results["tasks"] = {"x": part | {"count": 50} | modes | votes}
    text = " ".join(printed(comparison.print_results, results, width=120).split())
    assert "s zero-shot CoT: 41.0 read strictly, 50.0 flexibly; 12.5% are read differently" in text
    assert "s zero-shot CoT: maj@16 30.0 (20.0–50.0), pass@16 30.0 (20.0–50.0)" in text
