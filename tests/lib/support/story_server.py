"""A real HTTP server with OpenAI's two completion APIs over the embedded world's teacher.

The next-token distribution of that teacher is known exactly, so the log-probabilities are true.
Prompts end in "\\nA:"; what stands after it is the text so far.
"""

import hashlib
import json
import math
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import StoryTeacher, tokenize

STORIES = make_stories(40, split="train", seed=3)
TEACHER = StoryTeacher()


def prompt_of(question: str) -> str:
    return f"Q: {question}\nA:"


def seed_of(body: dict) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class StoryServer:
    """Serves on a free port of 127.0.0.1 while the context is open.

    Args:
        faults: what happens to the first requests in their order of arrival; None is nothing. A
            number is an HTTP status; the names are methods of the handler.
        dialect: "openai"; "one_token" refuses max_tokens=0; "no_echo" refuses echo and has
            prompt_logprobs; "llama" passes over n and echo and has the chat shape everywhere;
            "no_logprobs" passes over logprobs.
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
        self.faults, self.dialect, self.delay = list(faults), dialect, delay
        self.retry_after = retry_after
        self.bodies, self.keys, self.answered = [], [], Counter()
        self.parallel = self.most_parallel = 0
        self.lock, self.closing = threading.Lock(), threading.Event()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"story_server": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

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
        if complaint := self.complaint(body):
            return self.refuse(400, complaint)
        with self.story_server.lock:
            self.story_server.answered[json.dumps(body, sort_keys=True)] += 1
        answer = self.answer(body, n=1 if fault == "fewer" else body.get("n", 1))
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

    def complaint(self, body):
        dialect = self.story_server.dialect
        if dialect == "one_token" and body["max_tokens"] == 0:
            return "max_tokens must be at least 1"
        if dialect == "no_echo" and body.get("echo"):
            return "echo is not supported"
        return None

    def answer(self, body, n):
        if self.story_server.dialect == "llama":
            n = 1
        chat = "messages" in body
        prompt = "\n".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
        written = prompt.rpartition("\nA:")[2]
        story = next(story for story in STORIES if story.question in prompt)
        choices = [self.choice(body, story, prompt, written, i) for i in range(n)]
        usage = {
            "prompt_tokens": len(tokenize(prompt)),
            "completion_tokens": sum(count for _, count in choices),
        }
        return {"choices": [choice for choice, _ in choices], "usage": usage}

    def choice(self, body, story, prompt, written, index):
        chat = "messages" in body
        k = body.get("top_logprobs") if chat else body.get("logprobs")
        if body.get("echo") and self.story_server.dialect != "llama":
            steps = echo_steps(story, prompt, written, k) + extra_steps(body["max_tokens"])
            text = "".join(step[0] for step in steps)
        else:
            rng = random.Random(f"{seed_of(body)} {index}")
            drawn = TEACHER.write(story, rng, k or 0)
            steps = list(zip(*vars(drawn).values(), strict=True))[: body["max_tokens"]]
            text = "".join(drawn.tokens[: body["max_tokens"]])
        choice = {"index": index, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if k is not None and self.story_server.dialect != "no_logprobs":
            shape = chat_shape if chat or self.story_server.dialect == "llama" else plain_shape
            choice["logprobs"] = shape(steps)
        if "prompt_logprobs" in body and self.story_server.dialect == "no_echo":
            choice["prompt_logprobs"] = vllm_shape(echo_steps(story, prompt, written, k))
        return choice, len(steps)


def echo_steps(story, prompt, written, k):
    """(token, log-probability, {token: log-probability}) of the prompt and the text behind it."""
    before = tokenize(prompt.removesuffix(written))
    steps = [(before[0], None, None), *((token, -1.0, {token: -1.0}) for token in before[1:])]
    tokens = tokenize(written)
    for i, token in enumerate(tokens):
        distribution = TEACHER.next_token(story, tuple(tokens[:i]))
        top = sorted(distribution.items(), key=lambda item: (-item[1], item[0]))[:k]
        p = distribution.get(token, 0)
        steps.append(
            (token, math.log(p) if p else -9999.0, {other: math.log(q) for other, q in top})
        )
    return steps


def extra_steps(max_tokens):
    """What a server writes that must write something."""
    return [("!", -3.0, {"!": -3.0})] * max_tokens


def plain_shape(steps):
    tokens, logprobs, tops = (list(column) for column in zip(*steps, strict=True))
    return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops}


def chat_shape(steps):
    def entry(token, logprob):
        return {"token": token, "logprob": logprob, "bytes": list(token.encode())}

    return {
        "content": [
            entry(token, logprob) | {"top_logprobs": [entry(*pair) for pair in top.items()]}
            for token, logprob, top in steps
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
