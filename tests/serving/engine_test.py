"""Tests of the engine without a server: order, room, and what is said at its end."""

import threading

import jax
import pytest

from cot_flax import load
from cot_flax.errors import UserError
from cot_flax.serving.engine import ClosedError, Engine, FullError, Job
from cot_flax.serving.server import Server


@pytest.fixture(scope="module")
def student(run):
    return load(run)


class Told:
    """Collects what a job is told."""

    def __init__(self, order=None):
        self.ids, self.reason, self.done = [], None, threading.Event()
        self.parts, self._order = 0, order if order is not None else []

    def __call__(self, ids, reason):
        self.ids, self.reason = ids, reason
        self.parts += 1
        if reason:
            self._order.append(self)
            self.done.set()


def job(student, text, told, max_tokens=20):
    return Job(student.generator.ready(text), max_tokens, 0.0, 1.0, 0, 0, told)


def test_what_waits_is_decoded_at_the_end_and_nothing_is_taken_then(student):
    engine = Engine(student.generator, slots=1, max_tokens=20, queue=2)
    order = []
    # The longest comes last, and yet enters last.
    texts = ["Anna", "Ben has 3 coins.", "How many coins does Ben have now, First?"]
    told = [Told(order) for _ in texts]
    jobs = [job(student, *pair) for pair in zip(texts, told, strict=True)]
    with pytest.raises(FullError):
        engine.submit([*jobs, jobs[0]])
    engine.submit(jobs)
    engine.close()
    assert order == told and engine.load == (0, 0)
    drawn = student.generator.generate(texts, max_tokens=20)
    assert [one.ids for one in told] == [texts[0].ids for texts in drawn]
    assert max(one.parts for one in told) > 1
    with pytest.raises(ClosedError):
        engine.submit(jobs)


def test_a_cancelled_job_lets_the_next_one_in(student):
    engine = Engine(student.generator, slots=1, max_tokens=20, queue=2)
    engine.warm_up()
    first, second, third = told = [Told() for _ in range(3)]
    jobs = [job(student, "Anna", one) for one in told]
    engine.submit(jobs)
    engine.cancel([jobs[0], jobs[1]])
    assert third.done.wait(30)
    engine.close()
    assert not second.done.is_set() or first.done.is_set()


def test_too_little_memory_is_said_at_the_start(student, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr("cot_flax.generation.slots.Slots.advance", full)
    prompting = student.prompting_of("zero_shot_cot")
    with pytest.raises(UserError, match=r"no memory left .*--slots, --max-tokens"):
        Server(student, name="tiny", prompting=prompting, max_tokens=4)
