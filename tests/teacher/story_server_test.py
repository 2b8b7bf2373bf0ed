"""The tests' server answers in the shapes of real ones, whose answers are fixtures."""

import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.story_server import STORIES, TIMES, Dialect, StoryServer, prompt_of

FIXTURES = Path(__file__).parents[1] / "fixtures" / "servers"
STORY = next(story for story in STORIES if any(step.operator == "*" for step in story.steps))
PROMPT = prompt_of(STORY.question)
# What no code of ours reads.
UNREAD = {"stop_reason", "token_ids", "prompt_token_ids", "routed_experts", "prompt_logprobs"}
UNREAD |= {"bytes"}  # of a withheld token there are none


def posted(server, path, body):
    """(status, answer)."""
    request = urllib.request.Request(
        f"{server.url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def asked(dialect, chat=False, **body):
    """The choices of one answer to the story's question."""
    prompt = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    body = {"model": "m", "max_tokens": 200, "temperature": 0.7} | prompt | body
    with StoryServer(dialect=dialect) as server:
        status, answer = posted(server, "chat/completions" if chat else "completions", body)
    assert status == 200, answer
    return answer["choices"]


def shape(value):
    """The keys and kinds of an answer, of one entry for each list."""
    if isinstance(value, dict):
        fixed = not {"logprob", "token"} & value.keys()
        texts = fixed and all(isinstance(other, float) for other in value.values())
        return "top" if texts else {k: shape(v) for k, v in value.items() if k not in UNREAD}
    if isinstance(value, list):
        kinds = [shape(item) for item in value if item is not None]
        return [kinds[0]] if kinds else []
    return type(value).__name__


@pytest.mark.parametrize(
    ("dialect", "name"),
    [
        ("vllm", "vllm_0.32_greedy_n3"),
        ("vllm_partial_utf8", "vllm_0.32_zh_partial_utf8"),
        ("vllm_reasoning", "vllm_0.32_reasoning_parser_chat"),
        ("llama_server", "llama_server_b11434_n8"),
        ("llama_server", "llama_server_b11434_echo"),
        ("llama_server", "llama_server_b11434_stop"),
        ("llama_cpp_python", "llama_cpp_python_0.3.36_echo_shifted"),
    ],
)
def test_an_answer_has_the_shape_of_the_real_one(dialect, name):
    real = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    body, chat = dict(real["request"]), "messages" in real["request"]
    body |= {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    with StoryServer(dialect=dialect) as server:
        status, answer = posted(server, "chat/completions" if chat else "completions", body)
    assert status == real["status"]
    if status != 200:
        assert real["response"]["error"]["message"] == answer["error"]["message"]
        return
    (choice,), (expected,) = answer["choices"], real["response"]["choices"]
    found, expected = shape(choice), shape(expected)
    for record in (found, expected):
        record.get("logprobs", {}).pop("text_offset", None)
        if "message" in record:
            wanted = {"content", "reasoning", "role"}
            record["message"] = {k: v for k, v in record["message"].items() if k in wanted}
    assert found == expected


def test_a_character_of_two_tokens_has_an_empty_first_one():
    choice, *_ = asked("vllm_partial_utf8", logprobs=3)
    tokens, values = (choice["logprobs"][name] for name in ("tokens", "token_logprobs"))
    assert "".join(tokens) == choice["text"] and TIMES in choice["text"]
    behind = [i for i, token in enumerate(tokens) if TIMES in token]
    assert all(tokens[i - 1] == "" and values[i] == 0.0 for i in behind)


def test_a_stop_string_is_run_through_or_withheld():
    """vLLM's tokens run to its end; llama.cpp's show what may begin it with the next token."""
    (choice,) = asked("vllm", logprobs=3, stop=["\nQuestion:"])
    assert choice["text"].endswith("\n")
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"] + "\nQuestion:"
    (choice,) = asked("llama_server", logprobs=3, stop=["\nQuestion:"])
    entries = choice["logprobs"]["content"]
    assert choice["text"].endswith("\n") and "\nQuestion" not in choice["text"]
    assert [entry["token"] for entry in entries].count("") == 2  # two newlines were withheld
    assert "".join(entry["token"] for entry in entries) == choice["text"].removesuffix("\n")


def test_a_shifted_echo_has_the_next_tokens_alternatives():
    choice, *_ = asked("llama_cpp_python", logprobs=3, echo=True, prompt=PROMPT + "First,")
    tokens, tops = choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"]
    assert all(after in top for after, top in zip(tokens[2:], tops[1:-1], strict=True))


def test_chains_differ_unless_they_are_seeded_or_the_server_is_greedy():
    def texts(dialect, **body):
        return {choice["text"] for choice in asked(dialect, n=3, **body)}

    assert len(texts("vllm")) == 3
    assert len(texts("vllm", top_k=1)) == len(texts(Dialect(is_greedy=True))) == 1
    assert texts("vllm", seed=1) == texts("vllm", seed=1)
    with StoryServer(dialect="llama_cpp_python") as server:
        body = {"model": "m", "prompt": PROMPT, "max_tokens": 200, "temperature": 0.7, "n": 2}
        first, second = (posted(server, "completions", body)[1]["choices"] for _ in range(2))
    assert len(first) == 1 and first != second


def test_a_seed_is_passed_over_where_the_dialect_ignores_it():
    dialect = Dialect(varies=True, ignores=("seed",))
    with StoryServer(dialect=dialect) as server:
        body = {"model": "m", "prompt": PROMPT, "max_tokens": 200, "temperature": 0.7, "seed": 1}
        first, second = (posted(server, "completions", body)[1]["choices"] for _ in range(2))
    assert first != second
