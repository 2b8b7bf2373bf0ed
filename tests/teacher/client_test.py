import asyncio
import json
import logging
import math
import random
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from support.story_server import STORIES, TEACHER, TIMES, Dialect, StoryServer, prompt_of

from cot_flax.errors import UserError
from cot_flax.lab.world.teacher import tokenize
from cot_flax.teacher.client import OpenAITeacher
from cot_flax.teacher.requests import (
    Completion,
    NotNow,
    Refused,
    Request,
    RequestFailed,
    Unscorable,
)

STORY = next(story for story in STORIES if len(story.steps) == 3)
PROMPT = prompt_of(STORY.question)
REQUEST = Request(PROMPT, n=3, temperature=0.7, max_tokens=200, top_logprobs=4)
CHAT = replace(REQUEST, prompt=({"role": "user", "content": STORY.question},))


def teacher_at(server, **settings):
    settings = {"timeout": 30.0, "wait_initial": 0.01, "wait_max": 0.02} | settings
    return OpenAITeacher("story", base_url=server.url, **settings)


def ask(teacher, *calls):
    """Makes the calls one after the other, in a loop that also closes the teacher."""

    async def all_calls():
        try:
            return [await call(teacher) for call in calls]
        finally:
            await teacher.close()

    return asyncio.run(all_calls())


def complete(server, request, **settings):
    (reply,) = ask(teacher_at(server, **settings), lambda teacher: teacher.complete(request))
    return reply


def score(server, text, prompt=PROMPT, k=4):
    (logprobs,) = ask(teacher_at(server), lambda teacher: teacher.score(prompt, text, k))
    return logprobs


def exact(text, k):
    """What StoryTeacher says of `text`: token, log-probability and the k best at each place."""
    tokens = tuple(tokenize(text))
    for i, token in enumerate(tokens):
        distribution = TEACHER.next_token(STORY, tokens[:i])
        best = sorted(distribution.values(), reverse=True)[:k]
        yield token, math.log(distribution[token]), [math.log(p) for p in best]


def assert_exact(logprobs, text, k):
    tokens, values, tops = zip(*exact(text, k), strict=True)
    assert tuple(token.replace(TIMES, "*") for token in logprobs.tokens) == tokens
    assert logprobs.token_logprobs == pytest.approx(values, abs=1e-12)
    for top, expected in zip(logprobs.top_logprobs, tops, strict=True):
        found = sorted(top.values(), reverse=True)[: len(expected)]  # an own entry may be the last
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("request_", [REQUEST, CHAT], ids=["completions", "chat"])
@pytest.mark.parametrize(
    "dialect", ["openai", "vllm", "vllm_partial_utf8", "llama_server", "llama_cpp_python"]
)
def test_completions_with_true_log_probabilities(request_, dialect):
    with StoryServer(dialect=dialect) as server:
        reply = complete(server, request_)
    # llama-cpp-python gives one choice whatever n is; who asks for three then asks again.
    assert len(reply.completions) == (1 if dialect == "llama_cpp_python" else 3)
    for completion in reply.completions:
        assert completion.finish_reason == "stop"
        assert completion.text.endswith(tuple("0123456789"))
        assert_exact(completion.logprobs, completion.text.replace(TIMES, "*"), 4)
    prompt = PROMPT if request_ is REQUEST else STORY.question
    assert len(server.bodies) == 1
    assert reply.prompt_tokens == len(tokenize(prompt))
    count = sum(len(tokenize(c.text)) for c in reply.completions)
    if dialect != "vllm_partial_utf8":
        assert reply.completion_tokens == pytest.approx(
            count, rel=0.2 * dialect.startswith("llama_s")
        )


def test_what_is_sent():
    request = replace(REQUEST, stop=("\n\n",), seed=5, frequency_penalty=0.5)
    with StoryServer() as server:
        complete(server, replace(REQUEST, top_logprobs=None))
        complete(server, request)
        complete(server, CHAT)
    plain = {"model": "story", "n": 3, "temperature": 0.7, "max_tokens": 200, "top_p": 1.0}
    messages = [{"role": "user", "content": STORY.question}]
    assert server.bodies == [
        plain | {"prompt": PROMPT},
        plain
        | {"prompt": PROMPT, "logprobs": 4}
        | {"stop": ["\n\n"], "seed": 5, "frequency_penalty": 0.5},
        plain | {"messages": messages, "logprobs": True, "top_logprobs": 4},
    ]


def test_choices_that_cannot_be_read_cost_no_other():
    choices = [{"text": "a", "finish_reason": "stop"}, {"audio": "..."}, {"text": "b"}]
    reply = answered_by(choices, replace(REQUEST, top_logprobs=None))
    assert [completion.text for completion in reply.completions] == ["a", "b"]


def answered_by(choices, request):
    with StoryServer(script=lambda body: (200, {"choices": choices})) as server:
        return complete(server, request)


FAULTS = [429, 500, 503, 408, 409, "cut", "malformed", "no_choices"]


@pytest.mark.parametrize("faults", [*([fault] for fault in FAULTS), FAULTS], ids=str)
def test_a_fault_is_retried_and_changes_nothing(faults):
    with StoryServer() as server:
        expected = complete(server, REQUEST)
    with StoryServer(faults) as server:
        assert complete(server, REQUEST, attempts=9) == expected
    assert len(server.bodies) == len(faults) + 1


def test_a_server_that_hangs_is_given_up_and_asked_again():
    with StoryServer() as server:
        expected = complete(server, REQUEST)
    with StoryServer(["hang"]) as server:
        assert complete(server, REQUEST, timeout=1.0) == expected
    assert len(server.bodies) >= 2


def test_a_server_that_is_not_there_is_named_at_once():
    with StoryServer() as server:
        pass
    with pytest.raises(UserError, match=r"no server at http://127.*vllm serve") as caught:
        complete(server, REQUEST, wait_initial=60.0)
    assert not isinstance(caught.value, RequestFailed)


def test_a_password_in_the_base_url_is_not_shown():
    with StoryServer() as server:
        pass
    url = server.url.replace("//127", "//me:secret@127")
    teacher = OpenAITeacher("story", base_url=url)
    with pytest.raises(UserError, match=r"no server at http://127") as caught:
        ask(teacher, lambda teacher: teacher.complete(REQUEST))
    assert "secret" not in str(caught.value)


def test_a_server_that_has_answered_before_is_waited_for():
    with StoryServer() as server:
        pass
    teacher = teacher_at(server, attempts=2)
    teacher.connection._has_answered = True
    with pytest.raises(NotNow, match="APIConnectionError from 127"):
        ask(teacher, lambda teacher: teacher.complete(REQUEST))


def test_attempts_are_used_up():
    with StoryServer([500] * 3) as server, pytest.raises(NotNow, match="HTTP 500 from 127"):
        complete(server, REQUEST, attempts=3)
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("header", "wait"),
    [("0.25", 0.25), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("soon", 3600.0), (None, 3600.0)],
)
def test_retry_after_is_honoured(header, wait, caplog):
    """Without it the wait is an hour."""
    caplog.set_level(logging.INFO, "cot_flax")

    async def until_it_waits():
        teacher = teacher_at(server, wait_initial=3600.0, wait_max=3600.0)
        call = asyncio.create_task(teacher.complete(REQUEST))
        while not caplog.records:
            await asyncio.sleep(0.01)
        if wait < 3600:
            assert len((await call).completions) == 3
        call.cancel()
        await teacher.close()

    with StoryServer([429], retry_after=header) as server:
        asyncio.run(until_it_waits())
    assert caplog.records[0].message.endswith(f"again in {wait:.1f} s")


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_is_fatal_and_names_the_variable(status, monkeypatch):
    monkeypatch.setenv("STORY_KEY", "sk-wrong")
    with StoryServer([status]) as server, pytest.raises(UserError, match="STORY_KEY") as caught:
        complete(server, REQUEST, key_variable="STORY_KEY")
    assert not isinstance(caught.value, RequestFailed)
    assert len(server.bodies) == 1
    assert server.keys[0] == "Bearer sk-wrong"


def test_a_wrong_path_is_fatal():
    with StoryServer([404]) as server, pytest.raises(UserError, match="/v1") as caught:
        complete(server, REQUEST)
    assert not isinstance(caught.value, RequestFailed)
    assert len(server.bodies) == 1


def test_a_refused_request_concerns_itself_alone():
    with (
        StoryServer([400]) as server,
        pytest.raises(Refused, match=r"HTTP 400.*no, N") as caught,
    ):
        complete(server, replace(REQUEST, n=1))
    assert caught.value.reason == "http_400"
    assert len(server.bodies) == 1


def test_no_key_goes_to_a_server_on_this_machine():
    with StoryServer() as server:
        complete(server, REQUEST)
    assert server.keys[0] is None


def test_a_base_url_without_a_scheme_is_named():
    with pytest.raises(UserError, match="base URL 'localhost:8000/v1'"):
        OpenAITeacher("story", base_url="localhost:8000/v1")


def test_the_third_retry_of_a_request_is_a_warning(caplog):
    caplog.set_level(logging.INFO, "cot_flax")
    with StoryServer([500] * 4) as server:
        complete(server, REQUEST)
    assert [record.levelname for record in caplog.records] == ["INFO"] * 2 + ["WARNING"] * 2


def test_a_server_that_wants_a_key_and_was_sent_none_says_so():
    with StoryServer([401]) as server, pytest.raises(UserError) as caught:
        complete(server, REQUEST, key_variable="STORY_KEY")
    assert "HTTP 401 from 127" in str(caught.value) and "STORY_KEY" in str(caught.value)
    assert "which was sent no key" in str(caught.value)


def test_headers_are_sent_and_not_shown():
    headers = {"Authorization": "Basic c2VjcmV0", "X-Team": "ours"}
    with StoryServer([400]) as server, pytest.raises(Refused) as caught:
        complete(server, replace(REQUEST, n=1), headers=headers)
    assert server.keys == ["Basic c2VjcmV0"]
    assert "c2VjcmV0" not in str(caught.value) and "no, (the key)" in str(caught.value)


def test_openais_own_server_needs_a_key(monkeypatch):
    with pytest.raises(UserError, match=r"no key for api\.openai\.com.*OPENAI_API_KEY"):
        OpenAITeacher("gpt")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-ключ")
    with pytest.raises(UserError, match="characters in OPENAI_API_KEY") as caught:
        OpenAITeacher("gpt")
    assert "ключ" not in str(caught.value)


def errors_behind(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("fault", [400, 401, 403, 404, 422, 429, 500, "cut", "malformed"])
def test_the_key_is_in_no_error_and_no_log(fault, key, caplog):
    """Every refusal of this server quotes the key."""
    caplog.set_level(logging.DEBUG)
    with StoryServer([fault] * 2) as server, pytest.raises(UserError) as caught:
        complete(server, REQUEST, attempts=2)
    assert key in server.keys[0]
    chain = list(errors_behind(caught.value))
    printed = "".join(traceback.format_exception(caught.value)) + repr(chain) + caplog.text
    records = "".join(repr(vars(record)) for record in caplog.records)
    assert key not in printed and key not in records
    assert not any(type(error).__module__.startswith("openai") for error in chain)


def test_log_probabilities_that_do_not_fit_are_named():
    choice = {"text": "a", "logprobs": {"tokens": ["b"], "token_logprobs": [-1.0]}}
    with StoryServer() as server:
        completion = teacher_at(server)._completion(choice, REQUEST)
    assert (completion.logprobs, completion.logprob_problem) == (None, "tokens_do_not_join")


@pytest.mark.parametrize(
    ("dialect", "calls"),
    [("openai", 1), ("vllm", 1), ("one_token", 1), ("no_echo", 3)],
)
def test_scoring_gives_the_servers_distribution(dialect, calls):
    text = "".join(TEACHER.write(STORY, random.Random(1)).tokens)
    with StoryServer(dialect=dialect) as server:
        assert_exact(score(server, text), text, 4)
    assert len(server.bodies) == calls


def test_the_way_to_score_is_looked_for_once():
    texts = ["First", "First,"]

    calls = [lambda teacher, text=text: teacher.score(PROMPT, text, 1) for text in texts]
    with StoryServer(dialect="no_echo") as server:
        scores = ask(teacher_at(server), *calls)
    assert ["".join(logprobs.tokens) for logprobs in scores] == texts
    assert len(server.bodies) == 4


def test_a_text_that_cannot_be_scored_is_named():
    with StoryServer() as server:
        with pytest.raises(Unscorable) as caught:
            score(server, "irst", prompt=PROMPT + "F")
        assert caught.value.reason == "boundary_inside_token"
        with pytest.raises(Unscorable) as caught:
            score(server, "Nonsense")
        assert caught.value.reason == "no_probability"


def test_a_server_that_scores_nothing_is_named():
    with StoryServer(dialect="llama_server") as server, pytest.raises(Unscorable) as caught:
        score(server, "First")
    assert caught.value.is_paid  # so that a run stops at it
    assert "no log-probabilities of a given text from 127" in caught.value.got
    assert "serve the model with vLLM" in caught.value.remedy


def test_a_refusal_after_a_success_concerns_one_text():
    calls = [lambda teacher: teacher.score(PROMPT, "First", 1)] * 2
    with StoryServer([None, 400]) as server, pytest.raises(Unscorable) as caught:
        ask(teacher_at(server), *calls)
    assert caught.value.reason == "refused"
    assert json.dumps(server.bodies[0]) == json.dumps(server.bodies[1])


# Answers of other shapes --------------------------------------------------------------------------


def choice(text="", **more):
    return {"choices": [{"text": text, "finish_reason": "stop", "index": 0} | more]}


def message(finish_reason="stop", **fields):
    answer = {"role": "assistant"} | fields
    return {"choices": [{"message": answer, "finish_reason": finish_reason, "index": 0}]}


def answered(answer, request=None, status=200, **server):
    """The one completion that a server's answer becomes, and how often it was asked."""
    plain_chat = replace(CHAT, n=1, top_logprobs=None)
    with StoryServer(script=lambda body: (status, answer), **server) as running:
        try:
            (completion,) = complete(running, request or plain_chat, attempts=3).completions
        finally:
            answered.calls = len(running.bodies)
    return completion


def real(name):
    path = Path(__file__).parents[1] / "fixtures" / "servers" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_a_chat_may_have_log_probabilities_in_the_shape_of_completions():
    """llama-cpp-python."""
    logprobs = {"tokens": ["It", " is"], "token_logprobs": [-0.5, -0.25], "text_offset": [0, 2]}
    logprobs["top_logprobs"] = [{"It": -0.5}, {" is": -0.25, " was": -2.0}]
    answer = message(content="It is")
    answer["choices"][0]["logprobs"] = logprobs
    read = answered(answer, replace(CHAT, n=1)).logprobs
    assert (read.tokens, read.token_logprobs) == (("It", " is"), (-0.5, -0.25))
    assert read.top_logprobs == tuple(logprobs["top_logprobs"])


THINKING = [{"type": "text", "text": "9 + 8 "}, {"type": "text", "text": "= 17."}]


@pytest.mark.parametrize(
    ("fields", "text", "thought"),
    [
        ({"content": "It is 17.", "reasoning_content": "9 + 8 = 17."}, "It is 17.", "9 + 8 = 17."),
        ({"content": "It is 17.", "reasoning": "9 + 8 = 17."}, "It is 17.", "9 + 8 = 17."),
        ({"content": None, "reasoning": "9 + 8 ="}, "", "9 + 8 ="),
        ({"reasoning_content": "9 + 8 ="}, "", "9 + 8 ="),
        ({"content": "It is 17.", "reasoning": None}, "It is 17.", ""),
        ({"content": None, "tool_calls": []}, "", ""),
        ({}, "", ""),  # Gemini, whose thought took all tokens
        (
            {
                "content": [
                    {"type": "thinking", "thinking": THINKING},
                    {"type": "text", "text": "It is "},
                    {"type": "reference", "reference_ids": [1]},
                    {"type": "text", "text": "17."},
                ]
            },
            "It is 17.",
            "9 + 8 = 17.",
        ),
    ],
)
def test_reasoning_is_kept_apart(fields, text, thought):
    completion = answered(message("length", **fields))
    assert completion == Completion(text, None, "length", "", thought)


def test_a_real_reasoning_parser_has_log_probabilities_of_the_thought_alone():
    """vLLM 0.32: content null, `reasoning`, and one token after the other in `logprobs`."""
    path = (
        Path(__file__).parents[1] / "fixtures" / "servers" / "vllm_0.32_reasoning_parser_chat.json"
    )
    answer = json.loads(path.read_text())["response"]
    completion = answered(answer, replace(CHAT, n=1))
    assert (completion.text, completion.thought) == ("", "1 + 1 = 2 in mathematics.")
    answer["choices"][0]["message"] |= {"reasoning": "1 + 1", "content": "= 2 in mathematics."}
    read = answered(answer, replace(CHAT, n=1)).logprobs
    assert "|".join(read.tokens) == "=| |2| in| mathematics|."


@pytest.mark.parametrize(
    ("fields", "finish_reason", "found"),
    [
        ({"content": None, "refusal": "I cannot."}, "stop", "refusal"),
        ({"content": "Half", "refusal": None}, "content_filter", "content_filter"),
        ({}, "content_filter: RECITATION", "content_filter"),
    ],
)
def test_a_refusal_is_a_finish_reason(fields, finish_reason, found):
    assert answered(message(finish_reason, **fields)).finish_reason == found


@pytest.mark.parametrize(
    "answer",
    [
        message(content=[{"type": "image_url", "image_url": {}}]),
        message(content={"text": "17"}),
        message(audio={}),
        {"choices": [{"delta": {"content": "17"}}]},
        {"output": [{"content": "17"}]},
        ["17"],
    ],
)
def test_an_unknown_shape_is_paid_once(answer):
    with pytest.raises(Refused, match="an answer of an unknown shape from 127") as caught:
        answered(answer)
    assert (caught.value.reason, caught.value.is_paid, answered.calls) == ("unknown_shape", True, 1)


def error(message, code=None, **more):
    return {"error": {"message": message, "type": "t", "code": code} | more}


@pytest.mark.parametrize(
    ("status", "answer", "reason"),
    [
        (400, error("The response was filtered", "content_filter"), "content_filter"),
        (400, error("Your prompt triggered our content management policy."), "content_filter"),
        (403, error("Your input was flagged by moderation"), "content_filter"),
        (400, error("This model's maximum context length is 4097 tokens"), "prompt_too_long"),
        (400, error("too big", "context_length_exceeded"), "prompt_too_long"),
        (500, error("the request exceeds the available context size"), "prompt_too_long"),
        (413, error("Payload"), "prompt_too_long"),
        (422, error("no such parameter"), "http_422"),
        (200, error("The response was filtered", 400, type="content_filter"), "content_filter"),
    ],
)
def test_what_is_refused_for_good_has_a_name(status, answer, reason):
    with pytest.raises(Refused) as caught:
        answered(answer, status=status)
    assert (caught.value.reason, answered.calls) == (reason, 1)


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (429, error("You exceeded your current quota, see billing", "insufficient_quota")),
        (429, error("You exceeded your current quota, see billing", type="insufficient_quota")),
        (429, error("You exceeded your current quota, please check your plan")),
        (402, error("Insufficient Balance")),
        (400, error("Your credit balance is too low to access the API")),
        (200, error("Insufficient credits", 402)),
    ],
)
def test_an_empty_account_stops_at_once(status, answer):
    with pytest.raises(UserError, match="no credit left at 127") as caught:
        answered(answer, status=status)
    assert not isinstance(caught.value, RequestFailed) and answered.calls == 1


@pytest.mark.parametrize(
    "text",
    [
        "Rate limit reached. Visit https://example.org/account/billing to add a payment method.",
        "You exceeded your current quota, limit: 10 a minute. Please retry in 12s.",
    ],
)
def test_a_limit_a_minute_is_waited_for(text):
    with pytest.raises(NotNow):
        answered(error(text), status=429)
    assert answered.calls == 3


def test_a_page_in_place_of_json_is_named():
    with StoryServer(["page"]) as server, pytest.raises(UserError, match=r"a page of HTML.*/v1"):
        complete(server, REQUEST)
    assert len(server.bodies) == 1


@pytest.mark.parametrize("name", ["llama_server_b11434_n8", "vllm_0.32_greedy_n3"])
def test_an_n_that_is_refused_is_asked_singly_from_then_on(name):
    refusal = real(name)
    answer = (refusal["status"], refusal["response"])
    with StoryServer(script=lambda body: answer if body["n"] > 1 else None) as server:
        calls = [lambda teacher: teacher.complete(replace(REQUEST, seed=5))] * 2
        first, second = ask(teacher_at(server), *calls)
    assert [body["n"] for body in server.bodies] == [3, 1, 1]
    assert len(first.completions) == len(second.completions) == 1


def test_n_falls_back_to_what_the_server_takes():
    """llama.cpp takes 4; the refusal costs nothing."""
    with StoryServer(dialect="llama_server") as server:
        calls = [lambda teacher: teacher.complete(replace(REQUEST, n=10))] * 2
        replies = ask(teacher_at(server), *calls)
    assert [body["n"] for body in server.bodies] == [10, 4, 4]
    assert [len(reply.completions) for reply in replies] == [4, 4]


def test_a_refusal_at_temperature_0_is_not_one_of_every_n():
    """vLLM takes one greedy chain, and any number of others."""
    with StoryServer(dialect="vllm") as server:
        calls = [replace(REQUEST, temperature=0.0), replace(REQUEST, n=2)]
        ask(teacher_at(server), *(lambda t, call=call: t.complete(call) for call in calls))
    assert [body["n"] for body in server.bodies] == [3, 1, 2]


@pytest.mark.parametrize("dialect", [Dialect(refuses=("max_tokens",)), "openai"])
def test_the_token_limit_has_the_name_that_the_server_asks_for(dialect):
    calls = [lambda teacher: teacher.complete(CHAT)] * 2
    with StoryServer(dialect=dialect) as server:
        ask(teacher_at(server), *calls)
    sent = [{"max_tokens", "max_completion_tokens"} & body.keys() for body in server.bodies]
    if dialect == "openai":
        assert sent == [{"max_tokens"}] * 2
    else:
        assert sent == [{"max_tokens"}] + [{"max_completion_tokens"}] * 2


def test_top_p_is_left_out_where_it_is_refused_and_off():
    refusal = error("Unsupported parameter: 'top_p'")
    with StoryServer(script=lambda body: (400, refusal) if "top_p" in body else None) as server:
        complete(server, REQUEST)
        with pytest.raises(Refused, match="top_p"):
            complete(server, replace(REQUEST, n=1, top_p=0.9))
    assert ["top_p" in body for body in server.bodies] == [True, False, True]


def test_a_servers_own_settings_are_sent_where_they_are_given():
    own = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "extra_body": {"a": [1]}}
    with StoryServer() as server:
        complete(server, replace(REQUEST, **own))
    (body,) = server.bodies
    assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["a"]) == (0, 0, 1, [1])
    key = REQUEST.key("m")
    assert len({key, *(replace(REQUEST, **{name: own[name]}).key("m") for name in own)}) == 5


def test_another_model_that_answers_is_named(caplog):
    """A gateway may fall back to another one within a run."""
    names = iter(["a", "a", "b"])
    with StoryServer(script=lambda body: (200, choice("x") | {"model": next(names)})) as server:
        calls = [lambda teacher: teacher.complete(replace(REQUEST, n=1))] * 3
        ask(teacher_at(server), *calls)
    (record,) = caplog.records
    assert "answers as model 'b', where it answered as a before" in record.message


LLAMA_ECHO = {"text": PROMPT + "First", "logprobs": {"content": []}, "finish_reason": "length"}
VALUELESS = {"tokens": [PROMPT, "First"], "token_logprobs": [None, None], "top_logprobs": None}


@pytest.mark.parametrize(
    "echo",
    [
        LLAMA_ECHO,
        LLAMA_ECHO | {"logprobs": VALUELESS},
        LLAMA_ECHO | {"logprobs": None},
    ],
)
def test_a_way_to_score_that_gives_no_scores_is_followed_by_the_next(echo):
    """llama.cpp echoes the text, and has log-probabilities of what it generates alone."""
    values = [None, {"1": {"logprob": -2.0, "decoded_token": "First"}}]

    def script(body):
        scored = {"text": "!", "prompt_logprobs": values, "finish_reason": "length"}
        return 200, {"choices": [echo if body.get("echo") else scored]}

    with StoryServer(script=script) as server:
        assert score(server, "First").token_logprobs == (-2.0,)
    assert len(server.bodies) == 3


def test_a_text_that_is_refused_is_no_verdict_on_the_server():
    with StoryServer([400] * 3) as server, pytest.raises(Unscorable) as caught:
        score(server, "First")
    assert (caught.value.reason, caught.value.is_paid) == ("refused", False)
