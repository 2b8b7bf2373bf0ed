"""`cot-flax serve` at 8 clients against transformers, at T5 1.1 small's shape in float32.

    python benchmarks/serving.py

Each client asks one completion after the other over HTTP. transformers has no server of its own: it
answers the same number of requests one by one, as a loop around `generate` would, and in batches of
as many as there are clients, as if all of them always asked at the same moment. Parameters are
random, and the end of the text is never the likeliest token: every answer has all its tokens.
"""

import argparse
import asyncio
import importlib.util
import json
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from decoding import random_parameters, random_prompts, torch
from harness import ratios, record, spread, take_turns

from cot_flax.generation.generator import Generator
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.serving.asking import Reasoner
from cot_flax.serving.server import Server
from cot_flax.students.t5 import T5Config, T5Student
from cot_flax.text.prompting import Prompting
from cot_flax.text.tokenizers import SentencePieceTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=4, help="of each client, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inputs", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--outputs", type=int, default=64, help="tokens of an answer")
    options = parser.parse_args()
    clients, requests = options.clients, options.requests
    with served(clients, options.outputs) as url:
        contenders = {"cot-flax": lambda: ask_all(url, options)}
        if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
            case = (T5Config(), 1, options.inputs, options.outputs)
            one, batch = torch(*case, prompts=1), torch(*case, prompts=clients)
            contenders["transformers, one by one"] = repeated(one, clients * requests)
            contenders["transformers, all at once"] = repeated(batch, requests)
        for run in contenders.values():  # compiles
            run()
        seconds = take_turns(contenders, options.rounds)
    tokens = clients * requests * options.outputs
    result = {"what": f"tokens a second of {clients} clients; T5 1.1 small, float32"}
    result |= vars(options)
    for name, times in seconds.items():
        result[name] = {"tokens_a_second": spread([tokens / t for t in times])}
        if name != "cot-flax":
            result[name]["times_as_long"] = ratios(times, seconds["cot-flax"])
    record("serving", result)


def repeated(run, times: int):
    def repeat():
        for _ in range(times):
            run()

    return repeat


@contextmanager
def served(slots: int, max_tokens: int):
    """The address of a server in this process, in a thread of its own."""
    model = T5Student(T5Config())
    tokenizer = SentencePieceTokenizer(VOCABULARY_PATH, extra_ids=0)
    generator = Generator(model, random_parameters(model), tokenizer)
    prompting = Prompting.of_template()
    student = Reasoner("benchmark", generator, {"": prompting}, max_tokens)
    server = Server(student, name="small", prompting=prompting, max_tokens=max_tokens, slots=slots)
    loop, stop, ready, found = asyncio.new_event_loop(), asyncio.Event(), threading.Event(), []

    def started(url: str) -> None:
        found.append(url)
        ready.set()

    running = server.run("127.0.0.1", 0, started=started, stop=stop)
    thread = threading.Thread(target=loop.run_until_complete, args=(running,))
    thread.start()
    ready.wait()
    try:
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def ask_all(url: str, options) -> None:
    """All requests of all clients; raises where an answer lacks tokens."""
    prompts = random_prompts(options.clients, options.inputs, vocab_size=350).tolist()

    def client(prompt):
        for _ in range(options.requests):
            body = {"prompt": prompt, "max_tokens": options.outputs, "temperature": 0}
            with urllib.request.urlopen(f"{url}/completions", json.dumps(body).encode()) as answer:
                written = json.load(answer)["usage"]["completion_tokens"]
            if written != options.outputs:
                raise SystemExit(f"{written} tokens, not {options.outputs}")

    with ThreadPoolExecutor(options.clients) as pool:
        list(pool.map(client, prompts))


if __name__ == "__main__":
    main()
