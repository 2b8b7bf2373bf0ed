"""Paired differences of runs made up here."""

import io
import json

import pytest
from rich.console import Console
from support.reports import story_rows, write_run

from cot_flax import run_folder
from cot_flax.cli import app
from cot_flax.errors import UserError
from cot_flax.evaluation import statistics
from cot_flax.reports import comparison
from cot_flax.reports.comparison import paired


def write(folder, changed=(), rows=None):
    """A run of stories, with the outcome of the questions at `changed` places turned."""
    rows = rows or story_rows("zero_shot_cot", 0.5, 0)
    turned = [row | {"right": row["right"] != (place in changed)} for place, row in enumerate(rows)]
    write_run(folder, turned, [])
    return folder


def differences(**runs):
    return paired.differences(run_folder.read_runs(runs))


def test_a_run_is_measured_on_the_questions_of_the_first(tmp_path):
    rows = story_rows("zero_shot_cot", 0.5, 0)
    wrong = [place for place, row in enumerate(rows) if not row["right"]][:9]
    right = [place for place, row in enumerate(rows) if row["right"]][:2]
    (found,) = differences(a=write(tmp_path / "a"), b=write(tmp_path / "b", wrong + right))
    assert (found.run, found.against, found.title) == (1, 0, ("stories", "zero-shot CoT"))
    assert (found.found.gained, found.found.lost, found.found.questions) == (9, 2, len(rows))
    assert found.found.p_value == statistics.mcnemar(9, 2) == found.adjusted
    assert paired.cells(found)[0] == f"+{100 * 7 / len(rows):.1f}"


def test_several_runs_are_one_table_of_tests(tmp_path):
    runs = {name: write(tmp_path / name, range(n)) for name, n in (("a", 0), ("b", 12), ("c", 3))}
    found = differences(**runs)
    p_values = [one.found.p_value for one in found]
    assert [one.adjusted for one in found] == statistics.holm(p_values) != p_values


def test_other_questions_of_one_id_are_not_compared(tmp_path):
    rows = story_rows("zero_shot_cot", 0.5, 0)
    rows[3] = rows[3] | {"question": "Another one?"}
    runs = {"a": write(tmp_path / "a"), "b": write(tmp_path / "b", rows=rows)}
    (found,) = differences(**runs)
    assert found.found is None and "40 and 40 answers, 1 and 1 of them" in found.why_not
    with pytest.raises(UserError, match=r"no task to compare.*40 and 40 answers"):
        comparison.print_differences(runs)


def test_the_terminal_names_what_it_cannot_compare(tmp_path):
    """One task of the two is of the same questions; nothing of the other is lost in silence."""
    same = story_rows("zero_shot_answer", 0.5, 0)
    rows = story_rows("zero_shot_cot", 0.5, 0)
    other = [row | {"question": row["question"] + "?"} for row in rows]
    runs = {"a": write(tmp_path / "a", rows=same + rows)}
    runs["b"] = write(tmp_path / "b", range(5), rows=same + other)
    console = Console(file=io.StringIO(), width=100)
    comparison.print_differences(runs, console)
    text = console.file.getvalue()
    assert "b: got 40 and 40 answers" in text.partition("stories, zero-shot CoT")[2]
    assert "b: got" not in text.partition("stories, zero-shot CoT")[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{a}", "{b}", "--gin_file=x.gin"], "--compare and x.gin"),
        (["{a}", "{b}", "--gin.SPLIT='test'"], "--compare and --gin.SPLIT"),
        (["{a}", "{a}"], "with itself"),
        (["{a}", "{a}/nowhere"], "no folder"),
    ],
)
def test_a_comparison_that_cannot_be_is_named(words, message, tmp_path):
    runs = {name: write(tmp_path / name) for name in "ab"}
    with pytest.raises(UserError, match=message):
        app(
            ["evaluate", "--compare", *(word.format(**runs) for word in words)],
            standalone_mode=False,
        )


def test_the_command_line_compares(tmp_path, capsys):
    runs = [str(write(tmp_path / name, range(n))) for name, n in (("a", 0), ("b", 9))]
    app(["evaluate", "--compare", *runs], standalone_mode=False)
    assert "Differences from a" in capsys.readouterr().out


def test_the_table_fits_eighty_columns(demo_runs):
    runs = demo_runs | {"few-shot + zero-shot mixture": demo_runs["mix_kl"]}
    console = Console(file=io.StringIO(), width=80)
    comparison.print_differences(runs, console)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text


def test_runs_without_predictions_have_no_differences(tmp_path):
    runs = {name: write(tmp_path / name) for name in "ab"}
    (runs["a"] / "test" / "predictions.jsonl").unlink()
    assert differences(**runs) == []


def test_the_page_has_every_comparison(tmp_path):
    runs = {name: write(tmp_path / name, range(n)) for name, n in (("a", 0), ("b", 12), ("c", 3))}
    comparison.write(tmp_path / "page.html", runs)
    page = (tmp_path / "page.html").read_text()
    for one in differences(**runs):
        for cell in paired.cells(one):
            assert f">{cell.replace('<', '&lt;')}<" in page
    assert json.dumps(page).count("Paired differences") == 2
