import itertools
import multiprocessing
import os

import pytest

from cot_flax.errors import UserError
from cot_flax.teacher.preparation import Settings
from cot_flax.teacher.readers import Raw
from cot_flax.teacher.samples import to_line
from cot_flax.teacher.workers import Chunk, Job, cores, prepare_chunks
from cot_flax.world.stories import make_stories
from cot_flax.world.teacher import make_samples
from cot_flax.world.vocabulary import VOCABULARY_PATH

JOB = Job(VOCABULARY_PATH.read_bytes(), Settings())


@pytest.fixture(scope="module")
def chunks():
    """12 chunks of one question; in each a record is broken, and one is longer than the others."""
    lines = list(map(to_line, make_samples(make_stories(12, split="train"), samples=2)))
    groups = [[*lines[2 * i : 2 * i + 2], b"?"] for i in range(12)]
    groups[0] *= 20  # the first is the last to be done
    return [
        Chunk(i, "s.jsonl", [Raw(f"s.jsonl, line {n}", b"%d" % i, x) for n, x in enumerate(group)])
        for i, group in enumerate(groups)
    ]


def flat(done):
    return [
        (
            chunk.index,
            chunk.path,
            [(r.id, r.first, r.targets, r.projection.logprobs_TK.tolist()) for r in outcome.kept],
            outcome.dropped,
            [(e.reason, str(e)) for e in outcome.rejected],
            outcome.tally,
        )
        for chunk, outcome in done
    ]


def test_several_processes_give_what_one_gives_in_order(chunks):
    one = flat(prepare_chunks(iter(chunks), JOB, workers=1))
    assert [index for index, *_ in one] == list(range(12))
    assert [len(errors) for *_, errors, _ in one] == [20, *[1] * 11]
    assert flat(prepare_chunks(iter(chunks), JOB, workers=2)) == one


def test_a_bounded_number_of_chunks_is_in_flight(chunks):
    """However many there are: the input may be larger than the memory."""
    given = 0

    def endless():
        nonlocal given
        for i in itertools.count():
            given += 1
            yield Chunk(i, "s.jsonl", chunks[1].raws)

    done = prepare_chunks(endless(), JOB, workers=2)
    for taken in range(1, 9):
        assert next(done)[0].index == taken - 1
        assert given - taken <= 2 + 2
    done.close()  # and stops the processes


def test_a_single_chunk_needs_no_other_process(chunks):
    for given, alone in ((chunks[:1], True), (chunks[:3], False)):
        done = prepare_chunks(iter(given), JOB, workers=2)
        next(done)
        assert (multiprocessing.active_children() == []) == alone
        done.close()
        assert multiprocessing.active_children() == []
    assert list(prepare_chunks(iter([]), JOB, workers=8)) == []


def test_an_error_in_another_process_comes_back_as_it_is(chunks):
    settings = Settings(top_k=0)
    with pytest.raises(UserError, match=r"^got k = 0; expected k of at least 1; give "):
        list(prepare_chunks(iter(chunks), Job(JOB.model, settings), workers=2))


def test_the_outcome_does_not_depend_on_how_records_are_cut(chunks):
    (_, whole), *_ = prepare_chunks(
        iter([Chunk(0, "s.jsonl", [raw for chunk in chunks[1:] for raw in chunk.raws])]),
        JOB,
        workers=1,
    )
    parts = [outcome for _, outcome in prepare_chunks(iter(chunks[1:]), JOB, workers=1)]
    assert [r.id for r in whole.kept] == [r.id for part in parts for r in part.kept]
    assert whole.tally.read == sum(part.tally.read for part in parts)


def test_cores_are_those_that_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert cores() == len(allowed)
