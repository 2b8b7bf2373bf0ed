"""Tests of the model card: what a run left behind stands in it, and nothing is made up."""

import json

import pytest
import yaml
from support.reports import task_card

from cot_flax import run_folder
from cot_flax.errors import UserError
from cot_flax.reports.card import facts, render, write

RUN = {
    "student": {"family": "t5", "config": {"dropout_rate": 0.05, "lora": {"rank": 4}}},
    "started_from": "google/flan-t5-small",
    "data": {
        "mixture": "stories_teacher_zero_shot_cot",
        "store": "/home/ada/store",
        "lengths": {"inputs": 128, "targets": 160},
    },
    "objective": {"kl_weight": 0.75, "tail": "bucket", "temperature": 1.0},
    "training": {"optimizer": "adamw", "learning_rate": 0.001, "steps": 600, "seed": 0},
}

RESULTS = {
    "checkpoint": "run/checkpoints/600",
    "split": "test",
    "decoding": {"samples": 1, "temperature": 0.0, "mode": "flexible"},
    "cards": {"stories_zero_shot_cot": task_card("stories", "zero_shot_cot")},
    "tasks": {
        "stories_zero_shot_cot": {
            "accuracy": 0.75,
            "accuracy_low": 0.705,
            "accuracy_high": 0.79,
            "parse_failure_rate": 0.02,
            "count": 400,
        }
    },
}
PROMPT = "Q: My name is Ada Example, and my wages are late. What now?\nLet's think step by step"
PLACE = "/home/ada/runs/kl/checkpoints/600"


@pytest.fixture
def run(tmp_path):
    """What train and evaluate leave behind, without the arrays."""
    run_folder.write_facts(tmp_path, RUN)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "test" / "predictions.jsonl").write_text(json.dumps({"prompt": PROMPT}) + "\n")
    return tmp_path


def header_and_body(text):
    empty, header, body = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(header), body


def test_a_card_says_what_the_run_was(run):
    header, body = header_and_body(render(facts("student", 1234567, run)))
    assert header["base_model"] == "google/flan-t5-small"
    assert header["library_name"] == "transformers"
    for line in (
        "# student",
        "1,234,567 parameters",
        "| started from | google/flan-t5-small |",
        "| optimizer steps | `600` |",
        "| data (SeqIO task or mixture) | `stories_teacher_zero_shot_cot` |",
        "| teacher's chains | `store` |",
        "| longest example (tokens) | `{'inputs': 128, 'targets': 160}` |",
        "| optimizer | `adamw` |",
        "| dropout | `0.05` |",
        "| LoRA rank (merged here) | `4` |",
        "| seed | `0` |",
        "0.75 x KL from the teacher's top-k token distribution (the rest of the mass as one class;"
        " temperature 1.0) + 0.25 x token cross entropy; token cross entropy where the teacher gave"
        " none |",
        "| stories_zero_shot_cot | 75.0 (70.5-79.0) | 2.0 | 400 |",
        "(greedy, 1 sample a question, answers read by the rule `flexible`)",
        "Flan-T5 itself was trained on rationales of GSM8K",
    ):
        assert line in body, line


def prompt_of(text):
    code = text.split("```")[1].removeprefix("python\n")
    compile(code, "card", "exec")
    assigned = next(line for line in code.splitlines() if line.startswith("prompt = "))
    return eval(assigned.removeprefix("prompt = "))


def test_the_example_of_a_card_is_python_with_the_layout_of_prompts(run):
    assert prompt_of(render(facts("student", 1, run))) == "Q: QUESTION\nLet's think step by step"
    shown = {"exemplars": "drawn", "shots": 2, "template": "t5"}
    card = task_card("stories", "few_shot_answer") | shown
    results = RESULTS | {"cards": {"stories_zero_shot_cot": card}}
    (run / "test" / "results.json").write_text(json.dumps(results))
    assert prompt_of(render(facts("student", 1, run))) == (
        "Q: QUESTION 1\nA: The answer is ANSWER 1 ### Q: QUESTION 2\nA: The answer is ANSWER 2 ### "
        "Q: QUESTION\nA:"
    )


@pytest.mark.parametrize(
    "template", ["ho2022", {"cot_input": "{question}", "answer_input": "x {question}"}]
)
def test_the_example_of_a_card_has_the_template_and_where_the_instruction_stands(run, template):
    card = task_card("stories", "zero_shot_cot") | {"template": template, "instructed": True}
    results = RESULTS | {"cards": {"stories_zero_shot_cot": card}}
    (run / "test" / "results.json").write_text(json.dumps(results))
    assert prompt_of(render(facts("student", 1, run))) == "INSTRUCTION ### QUESTION"


def test_a_card_has_no_users_words_and_no_local_paths(run):
    run_folder.write_facts(run, RUN | {"started_from": "/home/ada/runs/base"})
    text = write("student", 1, run, PLACE)
    assert not any(private in text for private in ("Ada", "wages", "/home"))
    assert "| started from | a checkpoint called base |" in text


def test_results_of_another_step_are_left_out(run):
    same = write("student", 1, run, PLACE)
    assert "| stories_zero_shot_cot | 75.0" in same and "left out" not in same
    assert "| optimizer steps | `600` |" in same
    other = write("student", 1, run, "/home/ada/runs/kl/checkpoints/604")
    assert "75.0" not in other
    assert "also evaluated after step 600, which is not what was exported" in other
    assert "| optimizer steps | `604` |" in other


def test_all_evaluations_of_the_exported_step_are_shown(run):
    (run / "bbh").mkdir()
    card = task_card("sorting", "zero_shot_answer", "general", "text")
    summary = RESULTS["tasks"]["stories_zero_shot_cot"] | {"accuracy": 0.34, "majority": 0.4}
    more = RESULTS | {"max_examples": 50, "tasks": {"sorting": summary}, "cards": {"sorting": card}}
    (run / "bbh" / "results.json").write_text(json.dumps(more))
    text = write("student", 1, run, PLACE)
    assert "| stories_zero_shot_cot | 75.0" in text
    assert "the first 50 questions of each" in text
    assert "| sorting | 34.0 (70.5-79.0), always the same label 40.0 |" in text


def test_a_card_without_a_run_says_so():
    header, body = header_and_body(render(facts("student", 10, None)))
    assert "base_model" not in header
    assert "without\na record of its training" in body
    assert "## Training" not in body and "## Results" not in body and "Flan" not in body


def test_a_start_from_a_folder_is_no_base_model_of_the_hub(run):
    run_folder.write_facts(run, RUN | {"started_from": "/runs/base"})
    header, body = header_and_body(render(facts("student", 1, run)))
    assert "base_model" not in header
    assert "| started from | a checkpoint called base |" in body


def test_a_card_says_no_more_than_the_run_does(tmp_path):
    run_folder.write_facts(tmp_path, {"student": {"config": {"lora": None}}, "started_from": ""})
    body = write("student", 1, tmp_path)
    assert "| started from |" not in body and "LoRA" not in body
    run_folder.write_facts(tmp_path, {"training": {"steps": 5}, "objective": {"kl_weight": 0.0}})
    body = write("student", 1, tmp_path)
    assert "| started from | random parameters |" in body
    assert "| objective | token cross entropy |" in body
    assert "| optimizer steps | `5` |" in body and "optimizer |" not in body


def test_malformed_results_stop_the_card(run):
    (run / "test" / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json"):
        facts("student", 1, run)


def test_a_card_names_teachers_recipes_and_licences(run, tmp_path):
    store = tmp_path / "store"
    store.mkdir()
    sources = {
        "/home/ada/models/llama (fu2023), scored by ~/models/qwen": {"kept": 1200, "repeated": 3},
        "google/flan-t5-xxl": {"kept": 5},
        "nobody (ho2022)": {"no_answer": 2},
    }
    tally = {"sources": sources, "datasets": {"gsm8k": 1205}}
    (store / "manifest.json").write_text(json.dumps({"tally": tally}))
    run_folder.write_facts(run, RUN | {"data": {"store": str(store)}})
    header, body = header_and_body(write("student", 1, run, PLACE, license="mit"))
    assert header["license"] == "mit"
    for line in (
        "| llama (fu2023), scored by qwen | 1,200 |",
        "| google/flan-t5-xxl | 5 |",
        "| this student | mit |",
        "| started from google/flan-t5-small | Apache-2.0 |",
        "| teacher llama | not recorded: its licence or its provider's terms hold",
        "| teacher google/flan-t5-xxl | Apache-2.0 |",
        "| data set gsm8k | MIT |",
    ):
        assert line in body, line
    assert "nobody" not in body and "/home" not in body


def test_a_card_says_that_the_teachers_store_is_gone(run):
    header, body = header_and_body(write("student", 1, run, PLACE))
    assert "license" not in header and "## Teachers" not in body
    assert "their store was not there when this card was written" in body
