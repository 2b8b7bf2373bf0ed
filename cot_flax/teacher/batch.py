"""A teacher's requests and answers as files, in the form of OpenAI's batch API: half the price.

A line of a requests file is `{"custom_id", "method", "url", "body"}`. The id is the journal's key
and how many completions there were before, so that results find their requests again. A line of a
results file is `{"custom_id", "response": {"status_code", "body"}, "error"}`.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cot_flax.chains.records import records, require
from cot_flax.errors import UserError
from cot_flax.files import new_file
from cot_flax.teacher.client import OpenAITeacher
from cot_flax.teacher.costs import Prices, PromptTokens, check_limit, second_steps, size_of, to_ask
from cot_flax.teacher.journal import Answers, Journal, read_answers
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipes import Recipe
from cot_flax.teacher.requests import Request, RequestFailed

DISCOUNT = 0.5
MOST_REQUESTS = 50_000  # of a file, by OpenAI's rules


@dataclass
class Written:
    """What a requests file asks for.

    Attributes:
        requests: lines.
        prompt_tokens: an estimate from the bytes.
        completion_tokens: an upper bound.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass
class Taken:
    """What a results file gave.

    Attributes:
        answers: taken into the journal.
        known: that the journal has from such a line already.
        foreign: to requests that these questions and this recipe do not make.
        failed: requests without an answer, by reason.
        prompt_tokens: of the answers, as the server counts.
        completion_tokens: the same.
    """

    answers: int = 0
    known: int = 0
    foreign: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0


def write_requests(
    path: str | os.PathLike,
    questions: Sequence[Question],
    recipe: Recipe,
    teacher: OpenAITeacher,
    journal: str | os.PathLike,
    *,
    prices: Prices | None = None,
    max_cost: float | None = None,
) -> Written:
    """Writes what the journal lacks and can be asked at once: second steps follow their first.

    Args:
        prices: of requests that are no batch.
        max_cost: $ that the batch may cost.

    Raises:
        UserError: more requests than a file may have, or than the money allows; none was written.
    """
    check_limit(max_cost, prices)
    written, tokens, size = Written(), PromptTokens(), 0
    with read_answers(journal) as answers, new_file(path) as partial, open(partial, "w") as file:
        for request in _requests(questions, recipe, teacher.name, answers):
            line = {
                "custom_id": f"{request.key(teacher.name)}-{request.done}",
                "method": "POST",
                "url": "/v1/chat/completions" if request.is_chat else "/v1/completions",
                "body": teacher.body(request),
            }
            file.write(json.dumps(line) + "\n")
            written.requests += 1
            size += size_of(request.prompt)
            written.completion_tokens += request.n * request.max_tokens
            if written.requests > MOST_REQUESTS:
                raise UserError(
                    f"more than {MOST_REQUESTS:,} requests to write",
                    "what one file may have",
                    "write and send parts of it: --limit N, then a larger N",
                )
        written.prompt_tokens = tokens.about(size)
        most = prices and DISCOUNT * prices.cost(tokens.most(size), written.completion_tokens)
        if max_cost is not None and most > max_cost:
            raise UserError(
                f"a batch that may cost ${most:,.2f}, a token for every byte of its prompts",
                f"at most --max-cost ${max_cost:,.2f}",
                "ask fewer questions (--limit) or for fewer tokens (--max-tokens)",
            )
    return written


def take_results(
    path: str | os.PathLike,
    questions: Sequence[Question],
    recipe: Recipe,
    teacher: OpenAITeacher,
    journal: str | os.PathLike,
) -> Taken:
    """Takes the answers of a results file into the journal, each once.

    Raises:
        UserError: a line of another shape; what stands before it is in the journal. No line is an
            answer to these requests.
    """
    taken = Taken()
    with Journal(journal) as opened:
        steps = {
            step.key(teacher.name): step
            for question in questions
            for step in (
                recipe.first(question),
                *second_steps(question, recipe, teacher.name, opened),
            )
        }
        for place, record in records(path):
            source = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
            id = require(record, "custom_id", str, place)
            key, _, done = id.rpartition("-")
            if source in opened.sources:
                taken.known += 1
            elif key not in steps or not done.isdigit():
                taken.foreign += 1
            else:
                request = replace(steps[key], done=int(done))
                _take(record, place, request, key, source, teacher, opened, taken)
    if not taken.answers + taken.known:
        # A run that went on would ask for all of them at the full price.
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in taken.failed.most_common(3))
        others = f"{taken.foreign:,} of other requests" if taken.foreign else ""
        counts = "; ".join(filter(None, [reasons, others])) or "no line"
        raise UserError(
            f"{os.fspath(path)} without an answer to these questions ({counts})",
            "the results of their batch",
            "give the file that the batch ended with, and the recipe and options that wrote it",
        )
    return taken


def _take(
    record: Mapping[str, Any],
    place: str,
    request: Request,
    key: str,
    source: str,
    teacher: OpenAITeacher,
    journal: Journal,
    taken: Taken,
) -> None:
    response = record.get("response") or {}
    body = response.get("body") if isinstance(response, Mapping) else None
    if not isinstance(body, Mapping) or response.get("status_code", 200) != 200:
        taken.failed[_reason(record, response)] += 1
        return
    asked = max(request.n, len(body.get("choices") or ()))  # More than are needed are kept, too.
    try:
        reply = teacher.read(json.dumps(body), replace(request, n=asked))
    except RequestFailed as error:
        taken.failed[f"{place}: {error.got}"] += 1
        return
    journal.add(key, reply, source)
    taken.answers += 1
    taken.prompt_tokens += reply.prompt_tokens
    taken.completion_tokens += reply.completion_tokens


def _reason(record: Mapping[str, Any], response: Any) -> str:
    """By what name a request has no answer: the error's code, or the HTTP status."""
    body = response.get("body") if isinstance(response, Mapping) else None
    for error in (record.get("error"), isinstance(body, Mapping) and body.get("error")):
        if isinstance(error, Mapping) and (name := error.get("code") or error.get("type")):
            return str(name)
    return f"HTTP {response.get('status_code', '?')}" if isinstance(response, Mapping) else "none"


def _requests(
    questions: Sequence[Question], recipe: Recipe, teacher: str, answers: Answers
) -> Iterator[Request]:
    """In parts of what one request may ask for, each content once."""
    seen, most = set(), recipe.numbers.per_request
    for question in questions:
        for request in to_ask(question, recipe, teacher, answers):
            if (key := request.key(teacher)) in seen:
                continue
            seen.add(key)
            for part in range(0, request.n, most):
                yield replace(request, n=min(most, request.n - part), done=request.done + part)
