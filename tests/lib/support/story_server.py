"""A real HTTP server with OpenAI's two completion APIs over the embedded world's teacher.

The next-token distribution of that teacher is known exactly, so the log-probabilities are true.
Prompts end in "\\nA:"; what stands after it is the text so far. A prompt without any of the stories
is answered as `OF_OTHER_PROMPTS`. `DIALECTS` has the habits of real servers and of faulty ones.
"""

import functools
import hashlib
import json
import math
import random
import threading
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import StoryTeacher, tokenize

STORIES = make_stories(40, split="train", seed=3)
OF_OTHER_PROMPTS = next(s for s in STORIES if [step.operator for step in s.steps][:1] == ["*"])
TEACHER = StoryTeacher()
TIMES = "\u00d7"  # written for * where a dialect is "partial"
UNFORESEEN = -12.0  # nats of a token that the teacher cannot write, in a shifted echo
NEW_NAMES = {"max_completion_tokens": "max_tokens"}


@dataclass(frozen=True)
class Dialect:
    """How a server answers.

    Attributes:
        most_n: a larger `n` is HTTP 400.
        greedy_n: `n` may be above 1 at temperature 0; else HTTP 400.
        least_tokens: fewer in `max_tokens` are HTTP 400 ("refuse") or as many ("raise").
        ignores: parameters that it passes over.
        refuses: parameters that are HTTP 400.
        shape: of log-probabilities: "each" API its own, or "content" or "tokens" in both.
        ids: their entries have token ids, and what may begin a stop string is withheld until the
            next token, as llama.cpp does.
        own_entry: a token is among its alternatives though it is not one of the k best.
        prompt_logprobs: are given where they are asked for.
        shifted: an echo's values are those of the place behind, as llama-cpp-python gives them.
        usage_of_one: usage counts one of the `n` chains.
        runs_on: writes on behind the text until a stop string is complete.
        varies: equal requests without a seed have different answers.
        is_greedy: at every temperature.
        reasoning: the field of a message that has all but the last line.
        partial: a character is spread over two tokens, of which the first is empty.
        noise: nats that a scored token moves from one answer to the next.
        generation_noise: nats that a generated token is above what scoring says.
        model: its own name; "" repeats the request's.
        lost: characters that its tokenizer does not know: an echo has <unk> in their place.
    """

    most_n: int | None = None
    greedy_n: bool = True
    least_tokens: tuple[int, str] = (0, "refuse")
    ignores: tuple[str, ...] = ()
    refuses: tuple[str, ...] = ()
    shape: str = "each"
    ids: bool = False
    own_entry: bool = False
    prompt_logprobs: bool = False
    shifted: bool = False
    usage_of_one: bool = False
    runs_on: bool = False
    varies: bool = False
    is_greedy: bool = False
    reasoning: str = ""
    partial: bool = False
    noise: float = 0.0
    generation_noise: float = 0.0
    model: str = ""
    lost: str = ""


_VLLM = {
    "greedy_n": False,
    "own_entry": True,
    "prompt_logprobs": True,
    "runs_on": True,
    "varies": True,
}
DIALECTS = {
    "openai": Dialect(),
    "one_token": Dialect(least_tokens=(1, "refuse")),
    "no_echo": Dialect(refuses=("echo",), prompt_logprobs=True),
    "no_logprobs": Dialect(ignores=("logprobs", "top_logprobs")),
    # As of vllm 0.32, llama.cpp b11434 and llama-cpp-python 0.3.36.
    "vllm": Dialect(**_VLLM),
    "vllm_partial_utf8": Dialect(**_VLLM, partial=True),
    "vllm_reasoning": Dialect(**_VLLM, reasoning="reasoning"),
    "llama_server": Dialect(
        most_n=4,
        ignores=("echo", "repetition_penalty"),
        least_tokens=(1, "raise"),
        shape="content",
        ids=True,
        usage_of_one=True,
        runs_on=True,
        varies=True,
    ),
    "llama_cpp_python": Dialect(
        ignores=("n", "repetition_penalty"),
        shape="tokens",
        own_entry=True,
        shifted=True,
        runs_on=True,
        varies=True,
    ),
}


def prompt_of(question: str) -> str:
    return f"Q: {question}\nA:"


def seed_of(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class StoryServer:
    """Serves on a free port of 127.0.0.1 while the context is open.

    Args:
        faults: what happens to the first requests in their order of arrival; None is nothing. A
            number is an HTTP status; the names are methods of the handler.
        dialect: a `Dialect`, or the name of one.
        delay: seconds that every answer takes.
        retry_after: the header of a 429.
        script: from the body of a request to (status, object) of its answer; None is nothing.

    Attributes:
        bodies: of all requests, in the order of arrival.
        keys: the Authorization headers of all requests.
        answered: how often each request (its body in JSON) was worked on: what is paid for.
        most_parallel: the most requests at one time.
    """

    def __init__(self, faults=(), *, dialect="openai", delay=0.0, retry_after="0", script=None):
        self.script = script or (lambda body: None)
        self.dialect = dialect if isinstance(dialect, Dialect) else DIALECTS[dialect]
        self.faults, self.delay, self.retry_after = list(faults), delay, retry_after
        self.bodies, self.keys, self.answered, self.turns = [], [], Counter(), Counter()
        self.parallel = self.most_parallel = 0
        self.lock, self.closing = threading.Lock(), threading.Event()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"story_server": self})
        self._http = _Server(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # Of five a burst waits for a second.


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        models = [{"id": self.story_server.dialect.model or "story", "object": "model"}]
        self.send(200, json.dumps({"object": "list", "data": models}).encode(), None)

    def do_POST(self):
        server = self.story_server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers["Authorization"])
            server.parallel += 1
            server.most_parallel = max(server.parallel, server.most_parallel)
            fault = server.faults.pop(0) if server.faults else None
        try:
            self.respond(body, fault)
        except ConnectionError:
            self.close_connection = True  # the client was killed
        finally:
            with server.lock:
                server.parallel -= 1

    def respond(self, body, fault):
        if isinstance(fault, int):
            return self.refuse(fault, f"no, {self.headers['Authorization']}")
        if fault == "hang":
            self.story_server.closing.wait(20)
            self.close_connection = True
            return None
        time.sleep(self.story_server.delay)
        if fault == "page":
            return self.send(200, b"<!doctype html><title>Welcome</title>", None)
        if scripted := self.story_server.script(body):
            return self.send(scripted[0], json.dumps(scripted[1]).encode(), None)
        dialect = self.story_server.dialect
        if complaint := complaint_about(body, dialect):
            return self.refuse(400, complaint)
        with self.story_server.lock:
            self.story_server.answered[json.dumps(body, sort_keys=True)] += 1
            alike = json.dumps({**body, "n": 1}, sort_keys=True)
            self.story_server.turns[alike] += 1
            turn = self.story_server.turns[alike]
        asked = {NEW_NAMES.get(k, k): v for k, v in body.items() if k not in dialect.ignores}
        if fault == "fewer":
            asked["n"] = 1
        answer = answer_to(asked, dialect, turn)
        answer["model"] = dialect.model or body["model"]
        if fault == "no_choices":
            answer["choices"] = []
        self.send(200, json.dumps(answer).encode(), fault)

    def refuse(self, status, message):
        error = {"error": {"message": message, "type": "t", "code": None, "param": None}}
        self.send(status, json.dumps(error).encode(), None)

    def send(self, status, content, fault):
        if fault == "malformed":
            content = content[: len(content) // 2]
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status == 429 and self.story_server.retry_after:
            self.send_header("Retry-After", self.story_server.retry_after)
        self.end_headers()
        if fault == "cut":
            content, self.close_connection = content[: len(content) // 2], True
        self.wfile.write(content)


def complaint_about(body, dialect):
    """The message of the HTTP 400 that a server answers with; None where it does as it is asked."""
    for name in dialect.refuses:
        if body.get(name):
            instead = ", use max_completion_tokens" if name == "max_tokens" else ""
            return f"{name} is not supported{instead}"
    n, most = body.get("n", 1), dialect.most_n
    if most is not None and n > most:
        return f"Field 'n': Value must be between 1 <= value <= {most}, but got {n}"
    if n > 1 and body.get("temperature") == 0 and not dialect.greedy_n:
        return f"n must be 1 when using greedy sampling, got {n}."
    least, otherwise = dialect.least_tokens
    if otherwise == "refuse" and body.get("max_tokens", least) < least:
        return f"max_tokens must be at least {least}"
    return None


def answer_to(body, dialect, turn):
    """The answer to a request when it comes for the `turn`-th time, from 1."""
    chat = "messages" in body
    prompt = "\n".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
    plain = prompt.replace(TIMES, "*") if dialect.partial else prompt
    for character in dialect.lost:
        plain = plain.replace(character, "<unk>")
    written = plain.rpartition("\nA:")[2] if "\nA:" in plain else ""
    story = next((story for story in STORIES if story.question in plain), OF_OTHER_PROMPTS)
    choices, counts = [], []
    for index in range(body.get("n", 1)):
        choice, count = choice_of(body, dialect, story, plain, written, index, turn)
        choices.append(choice)
        counts.append(count)
    usage = {
        "prompt_tokens": len(tokenize(prompt)),
        "completion_tokens": counts[0] if dialect.usage_of_one else sum(counts),
    }
    return {"choices": choices, "usage": usage}


def choice_of(body, dialect, story, prompt, written, index, turn):
    """(choice, tokens that were written)."""
    chat = "messages" in body
    k = body.get("top_logprobs") if chat else body.get("logprobs")
    limit = body.get("max_tokens", 16)
    if dialect.least_tokens[1] == "raise":
        limit = max(limit, dialect.least_tokens[0])
    if body.get("echo"):
        extra = [("!", -3.0, {"!": -3.0})] * limit
        steps = [*echo_steps(story, prompt, written, k), *extra]
        text, finish_reason = "".join(step[0] for step in steps), "length"
        count = limit
        if dialect.shifted:
            steps = shifted(steps)[: len(steps) - limit]
        steps = [moved(step, dialect.noise * (turn - 1)) for step in steps]
    else:
        steps, text, finish_reason = generated(body, dialect, story, k, index, turn, limit)
        steps = [moved(step, dialect.generation_noise) for step in steps]
        count = len(steps)
    if dialect.own_entry:
        steps = [
            step if step[2] is None else (*step[:2], dict([step[:2]]) | step[2]) for step in steps
        ]
    if dialect.partial:
        text, steps = text.replace("*", TIMES), [part for step in steps for part in split(step)]
    choice = {"index": index, "finish_reason": finish_reason}
    choice |= {"message": message_of(text, dialect)} if chat else {"text": text}
    if k is not None and (not chat or body.get("logprobs")):
        has_content = dialect.shape == "content" or (chat and dialect.shape == "each")
        if dialect.ids:
            steps = withheld(steps, text, stops_of(body))
        shape = functools.partial(content_shape, dialect.ids) if has_content else plain_shape
        choice["logprobs"] = shape(steps)
    if dialect.prompt_logprobs and "prompt_logprobs" in body:
        scored = echo_steps(story, prompt, written, body["prompt_logprobs"])
        choice["prompt_logprobs"] = vllm_shape(scored)
    return choice, count


def stops_of(body):
    stop = body.get("stop") or []
    return [stop] if isinstance(stop, str) else stop


def generated(body, dialect, story, k, index, turn, limit):
    """(steps, text, finish reason) of a chain; the steps run on to the end of a stop string."""
    is_narrow = (
        dialect.is_greedy
        or body.get("top_k") == 1
        or body.get("top_p", 1.0) < 0.01
        or body.get("min_p", 0.0) >= 1.0
    )
    is_penalised = body.get("repetition_penalty", 1.0) > 1.0  # which leads to other texts
    if (is_narrow or body.get("temperature") == 0) and not is_penalised:
        steps = greedy(story, k or 0)
    else:
        seed = {name: body.get(name) for name in ("prompt", "messages", "seed", "temperature")}
        by_turn = turn if dialect.varies and body.get("seed") is None else ""
        seed = seed_of(seed) if dialect.varies else seed_of(body)
        drawn = TEACHER.write(story, random.Random(f"{seed} {index}{by_turn}"), k or 0)
        steps = list(zip(*vars(drawn).values(), strict=True))
    if dialect.runs_on and (stops := stops_of(body)):
        more = ["\n", *tokenize(stops[0])]
        steps = [*steps, *((token, -0.5, {token: -0.5}) for token in more)]
    finish_reason = "stop" if len(steps) <= limit else "length"
    steps, text = steps[:limit], "".join(step[0] for step in steps[:limit])
    ends = [(text.find(stop), stop) for stop in stops_of(body) if stop in text]
    if ends:
        end, stop = min(ends)
        steps, finish_reason = to_byte(steps, end + len(stop)), "stop"
        text = text[:end]
    return steps, text, finish_reason


def to_byte(steps, end):
    """The steps that write the first `end` characters, the one that they end in included."""
    kept, place = [], 0
    for step in steps:
        if place >= end:
            break
        kept.append(step)
        place += len(step[0])
    return kept


@functools.cache
def greedy(story, k):
    """The likeliest token at every place, as steps."""
    tokens, steps = (), []
    while distribution := TEACHER.next_token(story, tokens):
        top = best(distribution, k)
        token = min(distribution, key=lambda other: (-distribution[other], other))
        steps.append((token, math.log(distribution[token]), top))
        tokens += (token,)
    return steps


def best(distribution, k):
    top = sorted(distribution.items(), key=lambda item: (-item[1], item[0]))[:k]
    return {token: math.log(p) for token, p in top}


def echo_steps(story, prompt, written, k):
    """(token, log-probability, {token: log-probability}) of the prompt and the text behind it."""
    before = tokenize(prompt.removesuffix(written))
    steps = [(before[0], None, None), *((token, -1.0, {token: -1.0}) for token in before[1:])]
    tokens = tokenize(written)
    for i, token in enumerate(tokens):
        distribution = TEACHER.next_token(story, tuple(tokens[:i]))
        p = distribution.get(token, 0)
        steps.append((token, math.log(p) if p else -9999.0, best(distribution, k)))
    return steps


def shifted(steps):
    """Every token with the distribution that stands behind it; its own entry is the last one."""
    found = [(steps[0][0], None, None)]
    for (token, _, _), (_, _, top) in pairwise(steps[1:]):
        value = top.get(token, UNFORESEEN)
        found.append((token, value, top | {token: value}))
    return found


def moved(step, nats):
    token, logprob, top = step
    return step if not nats or logprob is None else (token, logprob - nats, top)


def split(step):
    """Two steps for one with a *, the first of which writes nothing."""
    token, logprob, top = step
    if "*" not in token:
        return [step]
    others = {"" if "*" in other else other: value for other, value in (top or {}).items()}
    whole = token.replace("*", TIMES)
    return [("", logprob, others), (whole, 0.0, {whole: 0.0})]


def message_of(text, dialect):
    """All but the last line is thought where the dialect keeps it apart."""
    message = {"role": "assistant", "content": text}
    if dialect.reasoning:
        thought, newline, last = text.partition("\nThe answer")
        message |= {"content": newline + last or None, dialect.reasoning: thought}
    return message


def withheld(steps, text, stops):
    """Shows a token that may begin a stop string with the next one; steps of a stop are cut off."""
    place, held, shown = 0, "", []
    for token, logprob, top in steps:
        place += len(token)
        if place > len(text):
            break
        held += token
        may_begin = any(stop.startswith(held[i:]) for stop in stops for i in range(len(held)))
        shown.append(("" if may_begin else held, logprob, top, token))
        held = held if may_begin else ""
    return shown


def plain_shape(steps):
    tokens, logprobs, tops = (list(column) for column in zip(*steps, strict=True))
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops}


def content_shape(ids, steps):
    """Steps with a fourth value have their token there, and what is shown of it before."""

    def entry(token, logprob, whole=None):
        id = {"id": zlib.crc32((whole or token).encode()) % 50_000} if ids else {}
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())} | id

    return {
        "content": [
            entry(token, logprob, *whole) | {"top_logprobs": [entry(*pair) for pair in top.items()]}
            for token, logprob, top, *whole in steps
        ]
    }


def vllm_shape(steps):
    """Token ids are counted up, for nobody reads them."""
    return [
        None
        if logprob is None
        else {
            str(i): {"logprob": value, "decoded_token": other}
            for i, (other, value) in enumerate(({token: logprob} | top).items())
        }
        for token, logprob, top in steps
    ]
