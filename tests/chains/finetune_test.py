"""Files of fine-tuning APIs: paper [3]'s form, and chats."""

import json

import pytest
import typer.testing

from cot_flax import cli
from cot_flax.errors import UserError


@pytest.fixture
def samples(tmp_path):
    rows = [
        {"question": "6 * 7?", "text": "6 * 7 = 42.", "answer": "42"},
        {"question": "6 * 7?", "text": "So the answer is 41.", "answer": "42"},
        {"question": "2 + 2?", "text": "2 + 2 = 4. --> 4 END", "answer": "4"},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def export(*options):
    arguments = ["export", "--format", "openai_finetune", *map(str, options)]
    return typer.testing.CliRunner().invoke(cli.app, arguments)


def test_prompts_and_completions_are_the_papers(samples, tmp_path):
    """Of Ho et al. 2022: `{question} ###` and ` {rationale} --> {answer} END`."""
    out = tmp_path / "train.jsonl"
    result = export("--samples", samples, "--out", out, "--rules", "default")
    assert result.exit_code == 0, result.output
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        {"prompt": "6 * 7? ###", "completion": " 6 * 7 = 42. --> 42 END"},
        {"prompt": "2 + 2? ###", "completion": " 2 + 2 = 4. --> 4 END"},
    ]
    assert result.output.startswith(f"2 of 3 chains in {out}; dropped: wrong_answer 1")


def test_messages_end_by_themselves(samples, tmp_path):
    out = tmp_path / "chat.jsonl"
    export("--samples", samples, "--out", out, "--rules", "default", "--chat")
    first = json.loads(out.read_text().splitlines()[0])
    assert first == {
        "messages": [
            {"role": "user", "content": "6 * 7?"},
            {"role": "assistant", "content": "6 * 7 = 42. --> 42"},
        ]
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no --samples for --format openai_finetune; expected a samples file"),
        (["--template", "t6"], "template 't6'; expected one of t5"),
    ],
)
def test_what_cannot_be_exported(samples, tmp_path, options, message):
    given = ["--samples", samples] if options else []
    result = export("--out", tmp_path / "out.jsonl", *given, *options)
    assert isinstance(result.exception, UserError | SystemExit)
    assert message in str(result.exception) + result.output


def test_nothing_kept_is_an_error(tmp_path):
    path = tmp_path / "wrong.jsonl"
    path.write_text('{"question": "1?", "text": "The answer is 2", "answer": "1"}\n')
    result = export("--samples", path, "--out", tmp_path / "out.jsonl", "--rules", "default")
    assert "no chain to train on (wrong_answer 1)" in str(result.exception) + result.output
    assert not (tmp_path / "out.jsonl").exists()
