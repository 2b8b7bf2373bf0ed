"""Tests of the server with OpenAI's own client, against the plain generator."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import openai
import pytest

from cot_flax import load
from cot_flax.serving.server import Server

PROMPTS = [f"Q: How many {thing} does Anna have now? A:" for thing in ("coins", "pens", "books")]
PROMPTS += ["Anna", "Ben has 12 cards.", "First, " * 30 + "Ben loses 3 pens."]
LENGTH = 24


@contextmanager
def serving(student, **settings):
    """A server on a free port, and its address."""
    known = {"name": "tiny", "prompting": student.prompting_of("zero_shot_cot")}
    server = Server(student, **known | {"max_tokens": LENGTH, "slots": 3} | settings)
    address, ready = [], threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def started(url):
        address.append(url)
        ready.set()

    run = server.run("127.0.0.1", 0, started=started, stop=stop)
    thread = threading.Thread(target=loop.run_until_complete, args=(run,))
    thread.start()
    assert ready.wait(30)
    try:
        yield server, address[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        loop.close()


@pytest.fixture(scope="module")
def student(run):
    return load(run)


@pytest.fixture(scope="module")
def served(student):
    with serving(student) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=served[1], api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def alone(student):
    """The greedy text of each prompt."""
    return [texts[0] for texts in student.generate(PROMPTS, max_tokens=LENGTH, slots=1)]


def complete(client, prompt, **settings):
    settings = {"max_tokens": LENGTH, "temperature": 0} | settings
    return client.completions.create(model="tiny", prompt=prompt, **settings)


def test_clients_at_once_get_the_text_that_each_gets_alone(client, alone):
    """More than slots, which enter amid others' decoding; half of them stream."""

    def ask(i):
        prompt, streams = PROMPTS[i % len(PROMPTS)], bool(i % 2)
        time.sleep(0.01 * i)
        found = complete(client, prompt, stream=streams)
        if streams:
            return "".join(chunk.choices[0].text for chunk in found)
        return found.choices[0].text

    count = 3 * len(PROMPTS)
    with ThreadPoolExecutor(count) as pool:
        texts = list(pool.map(ask, range(count)))
    assert texts == alone * 3
    assert len(set(alone)) > 2 and len(max(alone, key=len)) > 20


def test_a_completion_has_counts_and_a_reason(client, student, alone):
    found = complete(client, PROMPTS[0])
    encode = student.generator.tokenizer.encode
    assert found.usage.prompt_tokens == len(encode(PROMPTS[0])) + 1
    drawn = student.generator.generate([PROMPTS[0]], max_tokens=LENGTH)[0][0]
    assert found.usage.completion_tokens == len(drawn.ids)
    assert found.choices[0].finish_reason == ("stop" if len(drawn.ids) < LENGTH else "length")
    short = complete(client, PROMPTS[0], max_tokens=3)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    assert alone[0].startswith(short.choices[0].text)
    ids = [*encode(PROMPTS[0]), 1]
    assert complete(client, ids).choices[0].text == alone[0]
    both = complete(client, [PROMPTS[0], PROMPTS[1]])
    assert [choice.text for choice in both.choices] == alone[:2]
    assert [choice.index for choice in both.choices] == [0, 1]


def test_samples_are_those_of_their_seed(client):
    settings = {"n": 4, "temperature": 1.0, "seed": 5, "top_p": 0.95}
    first, second = (complete(client, PROMPTS[0], **settings) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in second.choices] and len(set(texts)) == 4
    for seed in (6, 5 + 2**32, -5):
        other = complete(client, PROMPTS[0], **settings | {"seed": seed})
        assert texts != [choice.text for choice in other.choices]
    free = [complete(client, PROMPTS[0], temperature=1.0).choices[0].text for _ in range(2)]
    assert free[0] != free[1]
    narrow = complete(client, PROMPTS[0], temperature=1.0, top_p=0).choices[0].text
    assert narrow == complete(client, PROMPTS[0]).choices[0].text
    # n of a stream come interleaved, each with its index and one reason.
    chunks = list(complete(client, PROMPTS[0], **settings, stream=True))
    whole = dict.fromkeys(range(4), "")
    reasons = []
    for chunk in chunks:
        whole[chunk.choices[0].index] += chunk.choices[0].text
        reasons += [chunk.choices[0].finish_reason] * (chunk.choices[0].finish_reason is not None)
    assert list(whole.values()) == texts and len(reasons) == 4


def test_a_stream_has_tokens_as_they_come_and_counts_at_its_end(client, alone):
    options = {"include_usage": True}
    *chunks, last = complete(client, PROMPTS[0], stream=True, stream_options=options)
    texts = [chunk.choices[0].text for chunk in chunks]
    assert "".join(texts) == alone[0] and sum(map(bool, texts)) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert last.choices == [] and last.usage == complete(client, PROMPTS[0]).usage


def test_a_text_ends_before_its_stop_text(client, alone):
    at = len(alone[0]) * 2 // 3
    stop = alone[0][at : at + 4]
    cut = alone[0][: alone[0].index(stop)]
    found = complete(client, PROMPTS[0], stop=["never this", stop])
    assert (found.choices[0].text, found.choices[0].finish_reason) == (cut, "stop")
    assert found.usage.completion_tokens < complete(client, PROMPTS[0]).usage.completion_tokens
    chunks = list(complete(client, PROMPTS[0], stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == cut
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_are_the_students(client, student):
    found = complete(client, PROMPTS[0], logprobs=3)
    text, given = found.choices[0].text, found.choices[0].logprobs
    assert "".join(given.tokens) == text
    assert [text[at:].startswith(t) for t, at in zip(given.tokens, given.text_offset, strict=True)]
    ids = student.generator.generate([PROMPTS[0]], max_tokens=LENGTH)[0][0].ids
    (scores,) = student.generator.score([PROMPTS[0]], [ids], 3)
    np.testing.assert_allclose(given.token_logprobs, scores.logprobs_T, atol=1e-4)
    for top, logprobs in zip(given.top_logprobs, scores.top_logprobs_TK, strict=True):
        np.testing.assert_allclose(list(top.values()), logprobs, atol=1e-4)
    chunks = [c.choices[0].logprobs for c in complete(client, PROMPTS[0], logprobs=3, stream=True)]
    streamed = [token for one in chunks if one for token in one.tokens]
    assert streamed == given.tokens


def test_a_chat_is_put_in_the_prompts_of_the_run(client, student):
    question = "How many coins does Anna have now?"
    expected = student.generate([f"Q: {question}\nLet's think step by step"])[0][0]
    ask = {"model": "tiny", "temperature": 0, "logprobs": True, "top_logprobs": 2}
    messages = [{"role": "user", "content": question}]
    found = client.chat.completions.create(messages=messages, **ask)
    assert found.choices[0].message.content == expected
    content = found.choices[0].logprobs.content
    assert "".join(entry.token for entry in content) == expected
    assert all(len(entry.top_logprobs) == 2 for entry in content)
    assert all(bytes(entry.bytes).decode() == entry.token for entry in content)
    first, *chunks = client.chat.completions.create(messages=messages, stream=True, **ask)
    assert first.choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == expected
    talk = [
        {"role": "system", "content": "Count."},
        {"role": "user", "content": [{"type": "text", "text": "One and one?"}]},
        {"role": "assistant", "content": "The answer is 2"},
        *messages,
    ]
    found = client.chat.completions.create(messages=talk, model="tiny", temperature=0, max_tokens=5)
    prompt = (
        "Count. ### Q: One and one?\nLet's think step by step\nThe answer is 2 ### "
        f"Q: {question}\nLet's think step by step"
    )
    assert found.choices[0].message.content == student.generate([prompt], max_tokens=5)[0][0]


@pytest.mark.parametrize(
    ("settings", "param", "message"),
    [
        ({"max_tokens": 0}, "max_tokens", "max_tokens must be an integer from 1 to 24, got 0"),
        ({"max_tokens": 25}, "max_tokens", "from 1 to 24, got 25"),
        ({"temperature": 3}, "temperature", "a number from 0 to 2, got 3"),
        ({"temperature": "hot"}, "temperature", "got 'hot'"),
        ({"top_p": -1}, "top_p", "from 0 to 1, got -1"),
        ({"n": 0}, "n", "n must be an integer from 1 to 128"),
        ({"n": 100}, "n", "100 texts at once; this server takes 67"),
        ({"logprobs": 6}, "logprobs", "from 0 to 5, got 6"),
        ({"stop": [""]}, "stop", "stop must be a text or a list of texts"),
        ({"stop": list("abcde")}, "stop", "stop has 5 texts, at most 4"),
        ({"prompt": []}, "prompt", "prompt must be a text"),
        ({"prompt": [[999]]}, "prompt", "prompt has ids outside of 0 to "),
        ({"prompt": "coins " * 1100}, "prompt", "a prompt of 1101 tokens; this server takes 1024"),
        ({"echo": True}, "echo", "echo is not supported here"),
        ({"presence_penalty": 1}, "presence_penalty", "presence_penalty is not supported"),
        ({"extra_body": {"top_k": 3}}, "top_k", "Unrecognized request argument supplied: top_k"),
        ({"stream": "yes"}, "stream", "stream must be true or false"),
    ],
)
def test_a_wrong_completion_says_which_parameter(settings, param, message, client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tiny", "prompt": "Anna"} | settings)
    assert caught.value.param == param and message in caught.value.message
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ([{"role": "tool", "content": "a"}], "messages[0] must have a role of developer, system"),
        ([{"role": "assistant", "content": "a"}], "by turns, the last one of the user"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content must be"),
    ],
)
def test_a_wrong_chat_says_why(messages, message, client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=messages)
    assert message in caught.value.message and caught.value.param == "messages"


def get(url, body=None):
    try:
        with urllib.request.urlopen(url, body, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_models_health_and_what_is_not_there(client, served):
    root = served[1].removesuffix("/v1")
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "cot-flax"
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'"):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="'gpt' does not exist"):
        client.completions.create(model="gpt", prompt="Anna")
    assert get(f"{root}/health") == (200, {"status": "ok", "decoding": 0, "waiting": 0})
    status, body = get(f"{root}/v1/completions", b"{half")
    assert status == 400 and "the body is not JSON" in body["error"]["message"]
    status, body = get(f"{root}/v1/embeddings", b"{}")
    assert status == 404 and body["error"]["message"] == "Not Found: POST /v1/embeddings"
    assert get(f"{root}/v1/completions")[0] == 405


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def stuck(student, monkeypatch):
    """One slot, one place in the queue, and a decoder that does not get on until it is let go."""
    with serving(student, slots=1, queue=1) as (server, url):
        advance, goes = server.engine._slots.advance, threading.Event()

        def advance_if():
            return advance() if goes.wait(0.01) else iter(())

        monkeypatch.setattr(server.engine._slots, "advance", advance_if)
        yield server, url, goes
        goes.set()


def raw(url, **body):
    """An open connection that has asked for a text."""
    host, port = url.removeprefix("http://").removesuffix("/v1").split(":")
    connection = socket.create_connection((host, int(port)))
    content = json.dumps({"prompt": "Anna", **body}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_frees_its_slot_and_a_full_queue_is_said(stuck, stream):
    server, url, goes = stuck
    first = raw(url, stream=stream)
    until(lambda: server.engine.load == (1, 0))
    second = raw(url, stream=stream)
    until(lambda: server.engine.load == (1, 1))
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError, match="too many requests wait") as caught:
            client.completions.create(model="tiny", prompt="Anna")
        assert caught.value.response.headers["Retry-After"] == "1"
        second.close()
        until(lambda: server.engine.load[1] == 0)
        first.close()
        until(lambda: server.engine.load == (0, 0))
        goes.set()
        assert client.completions.create(model="tiny", prompt="Anna", max_tokens=1).choices


def test_a_decoder_that_fails_is_said_and_health_knows(student, monkeypatch):
    with serving(student) as (server, url):

        def fail():
            raise RuntimeError("no device")

        monkeypatch.setattr(server.engine._slots, "advance", fail)
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            for _ in range(2):
                with pytest.raises(openai.InternalServerError, match="decoder has stopped"):
                    client.completions.create(model="tiny", prompt="Anna")
        status, body = get(url.replace("/v1", "/health"))
        assert (status, body["error"]) == (503, "RuntimeError: no device")


def test_the_command_serves_until_it_is_told_to_end(run):
    """What runs at SIGTERM is finished; afterwards nobody listens."""
    command = [sys.executable, "-m", "cot_flax.cli", "serve", "--checkpoint", str(run)]
    command += ["--port", "0", "--slots", "2", "--name", "tiny", "--max-tokens", "400"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process, ended(process):
        line = process.stdout.readline()
        assert line.startswith("tiny (2 slots) at http://127.0.0.1:"), process.stderr.read()[-2000:]
        url = line.split()[-1]
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
            settings = {"temperature": 2.0, "max_tokens": 400, "stream": True}
            stream = client.completions.create(model="tiny", prompt="Anna", **settings)
            next(iter(stream))
            process.send_signal(signal.SIGTERM)
            assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", int(url.split(":")[2].partition("/")[0])))


@contextmanager
def ended(process):
    """Whatever happens, the process is gone afterwards."""
    try:
        yield
    finally:
        process.kill()
