import dataclasses
import itertools
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest

from cot_flax.chains.filtering import Filters
from cot_flax.chains.preparation import Preparation
from cot_flax.chains.readers import SAMPLES, Raw
from cot_flax.chains.samples import to_line
from cot_flax.chains.workers import Chunk, Job, cores, prepare_chunks
from cot_flax.errors import UserError
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import make_samples
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.text.answers import add_answer_kind, marked_kind
from cot_flax.text.tokenizers import open_tokenizer

TOKENIZER = open_tokenizer(VOCABULARY_PATH)
JOB = Job(TOKENIZER, Preparation())


@pytest.fixture(scope="module")
def chunks():
    """12 chunks of one question; in each a record is broken, and one is longer than the others."""
    lines = list(map(to_line, make_samples(make_stories(12, split="train"), samples=2)))
    groups = [[*lines[2 * i : 2 * i + 2], b"?"] for i in range(12)]
    groups[0] *= 20  # the first is the last to be done
    return [
        Chunk(i, SAMPLES, [Raw(f"s.jsonl, line {n}", b"%d" % i, x) for n, x in enumerate(group)])
        for i, group in enumerate(groups)
    ]


def flat(done):
    return [
        (
            chunk.index,
            chunk.format,
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


def test_other_processes_know_an_answer_kind_that_was_added(chunks):
    """Its find is one that every process can import."""
    add_answer_kind("words", str.split)
    job = dataclasses.replace(JOB, settings=Preparation(Filters(answer_kind="words")))
    one = flat(prepare_chunks(iter(chunks), job, workers=1))
    assert sum(len(kept) for _, _, kept, *_ in one) > 10
    assert flat(prepare_chunks(iter(chunks), job, workers=2)) == one


def test_other_processes_know_markers(chunks):
    add_answer_kind("words", str.split)
    kind = marked_kind("words", ["zusammen sind es"])
    job = dataclasses.replace(JOB, settings=Preparation(Filters(answer_kind=kind)))
    script = "import pickle, sys; from cot_flax.text.answers import MARKED;"
    script += "pickle.load(sys.stdin.buffer); print(*MARKED)"
    known = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(job), capture_output=True, check=True
    )
    assert known.stdout.decode().strip() == "words behind zusammen sind es"


def test_a_bounded_number_of_chunks_is_in_flight(chunks):
    """However many there are: the input may be larger than the memory."""
    given = 0

    def endless():
        nonlocal given
        for i in itertools.count():
            given += 1
            yield Chunk(i, SAMPLES, chunks[1].raws)

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
    refused = dataclasses.replace(SAMPLES, parse=refuse)
    chunks = [dataclasses.replace(chunk, format=refused) for chunk in chunks]
    with pytest.raises(UserError, match=r"^got a cat; expected a dog; fetch it$"):
        list(prepare_chunks(iter(chunks), JOB, workers=2))


def refuse(raw):
    raise UserError("a cat", "a dog", "fetch it")


ORPHANS = """
import os, sys
from cot_flax.chains.preparation import Preparation
from cot_flax.chains.readers import SAMPLES, Raw
from cot_flax.chains.workers import Chunk, Job, prepare_chunks
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.text.tokenizers import open_tokenizer

if __name__ == "__main__":
    chunks = (Chunk(i, SAMPLES, [Raw("line", b"%d" % i, b"?")]) for i in range(999))
    job = Job(open_tokenizer(VOCABULARY_PATH), Preparation())
    done = prepare_chunks(chunks, job, workers=2)
    next(done)
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_worker_needs_no_accelerator_library():
    """It starts in a second: one import of JAX or TensorFlow would cost it several."""
    code = "import sys, cot_flax.chains.workers; print({'jax', 'tensorflow'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_no_worker_outlives_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(ORPHANS)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, script], **pipes, start_new_session=True) as parent:
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
        # The workers hold the other end of this pipe: it closes when the last one is gone.
        assert parent.stdout.read() == b""


def test_the_outcome_does_not_depend_on_how_records_are_cut(chunks):
    (_, whole), *_ = prepare_chunks(
        iter([Chunk(0, SAMPLES, [raw for chunk in chunks[1:] for raw in chunk.raws])]),
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
