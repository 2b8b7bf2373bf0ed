"""Makes a samples file from questions: asks, remembers every answer, and writes at the end."""

import hashlib
import itertools
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

from cot_flax.chains.samples import Sample, write_samples
from cot_flax.teacher.costs import Prices, Totals
from cot_flax.teacher.dispatch import Desk, all_of, work_through
from cot_flax.teacher.journal import Answers, Journal, journal_path
from cot_flax.teacher.questions import Question
from cot_flax.teacher.recipe import Recipe
from cot_flax.teacher.requests import Completion, Reply, Request, Teacher


def sample(
    questions: Sequence[Question],
    recipe: Recipe,
    teacher: Teacher,
    out: str | os.PathLike,
    *,
    concurrency: int = 16,
    prices: Prices | None = None,
) -> Totals:
    """Asks the teacher and writes the samples in the order of the questions.

    Every answer goes at once into the journal beside `out`. A run that was ended at any moment
    goes on where it was when it is started again: it sends only requests whose answer is not in
    the journal. The samples file is written when all answers are there, whole or not at all.

    Args:
        out: the samples file, .jsonl or .jsonl.gz.
        concurrency: the most requests in flight.
        prices: to show the cost.

    Raises:
        UserError: the teacher refuses all requests, more than 20 failed in a row, or some have no
            answer in the end; another run uses the journal, or it has a broken line.
    """
    totals = Totals(prices)
    with Journal(journal_path(out)) as journal:
        desk = Desk(journal, totals, concurrency)

        async def ask(request: Request) -> Reply:
            return await desk.ask(request.key(teacher.name), lambda: teacher.complete(request))

        async def answer(question: Question) -> None:
            await all_of(
                _chains(question, request, recipe, ask) for request in recipe.first(question)
            )

        work_through(questions, len(questions), answer, desk, teacher.close)
        write_samples(out, _samples(questions, recipe, teacher.name, journal, totals))
    return totals


async def _chains(
    question: Question,
    request: Request,
    recipe: Recipe,
    ask: Callable[[Request], Awaitable[Reply]],
) -> None:
    reply = await ask(request)
    follow_ups = [recipe.next(question, request, completion) for completion in reply.completions]
    await all_of(ask(follow_up) for follow_up in follow_ups if follow_up)


def _samples(
    questions: Iterable[Question], recipe: Recipe, teacher: str, answers: Answers, totals: Totals
) -> Iterator[Sample]:
    for question in questions:
        number = itertools.count()
        for request in recipe.first(question):
            for completion in answers[request.key(teacher)].completions:
                chain = _chain(question, request, completion, recipe, teacher, answers)
                totals.samples += 1
                if request.top_logprobs is not None and chain.logprobs is None:
                    totals.problems[completion.logprob_problem or "no_logprobs"] += 1
                yield Sample(
                    id=question.id,
                    dataset=question.dataset,
                    split=question.split,
                    question=question.question,
                    gold_answer=question.answer,
                    format=recipe.format,
                    prompt_hash=_prompt_hash(request),
                    teacher={"model": teacher, "params": recipe.params},
                    sample=next(number),
                    text=chain.text,
                    logprobs=chain.logprobs,
                    finish_reason=chain.finish_reason,
                )


def _chain(
    question: Question,
    request: Request,
    completion: Completion,
    recipe: Recipe,
    teacher: str,
    answers: Answers,
) -> Completion:
    follow_up = recipe.next(question, request, completion)
    second = follow_up and answers[follow_up.key(teacher)].completions[0]
    return recipe.sample_of(question, completion, follow_up, second)


def _prompt_hash(request: Request) -> str:
    content = json.dumps(request.prompt, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]
