import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from cot_flax.chains.projection import KINDS, Projection
from cot_flax.chains.samples import Logprobs
from cot_flax.chains.tally import MOST_INCONSISTENT, MOST_RANDOM, MOST_WORST, Tally


def projection(kinds, masses):
    kinds = np.array([KINDS.index(kind) for kind in kinds], np.int8)
    empty = np.zeros((len(kinds), 1))
    return Projection(empty, empty, kinds, np.array(masses, np.float32))


def example(share, id="a"):
    return {"id": id, "soft_share": share, "positions": []}


def filled(n):
    """A tally in which every count is another one."""
    tally = Tally(
        fates=Counter(kept=n, wrong_answer=2 * n),
        rejected=Counter({"bad_json": n, f"only_{n}": 1}),
        questions=3 * n,
        kept_chains=Counter({"1": n}),
        distinct_chains=Counter({"2": n}),
        one_hot_chains=4 * n,
        direct=9 * n,
        target_tokens=Counter({"16": n}),
        tokens=5 * n,
        teachers=Counter(somebody=n),
        datasets=Counter(sums=n),
        thoughts=Counter(learnt=7 * n, tokens=8 * n),
        prompts=6 * n,
        sources={"somebody (fu2023)": Counter(kept=n), f"only {n}": Counter(repeated=n)},
        source_scored=Counter(somebody=n),
        source_tokens=Counter(somebody=3 * n),
        source_soft=Counter(somebody=2 * n),
    )
    tally.add_projection(projection(["soft", "end"], [0.5, 1]), example(n / 10, str(n)))
    tally.add_characters(Counter({"é": n}), Counter({"你": 2 * n}), Counter({"<": 3 * n}))
    tally.unknown_dropped["是"] = n
    tally.add_inconsistent({"id": str(n), "steps": ["1 + 1 = 3"]})
    tally.add_scores("somebody", scores(n * [(-0.5, True), (-1.5, False)]))
    tally.add_dropped({"id": str(n), "reason": f"only_{n}"})
    return tally


def scores(rows):
    """Of tokens whose value is (likeliest) or is not the best among alternatives; None: no top."""
    tops = [{} if best is None else {"x": value if best else -0.1} for value, best in rows]
    return Logprobs(("t",) * len(rows), tuple(value for value, _ in rows), tuple(tops))


def test_how_likely_the_tokens_of_a_source_are():
    tally = Tally()
    tally.add_scores("a", scores([(-0.5, True), (-1.5, False), (-4.0, None), (0.0, None)]))
    assert (tally.scored, tally.ranked, tally.likeliest) == ({"a": 3}, {"a": 2}, {"a": 1})
    assert tally.nats("a") == 2.0  # the word that nobody sampled does not count
    assert tally.summary().splitlines()[1:] == [
        "log-probabilities of a: 2.00 nats a token, of 3 tokens, 50.0% are the likeliest there"
    ]


@pytest.mark.parametrize(
    ("rows", "beyond"),
    [
        (30 * [(-6.0, None)], False),
        (30 * [(-6.1, None)], True),
        (29 * [(-9.0, False)], False),  # too few to say
        (3 * [(-1.0, True)] + 17 * [(-3.0, False)], False),  # 15% of 20 are 3, and they are few
        (6 * [(-1.0, True)] + 34 * [(-3.0, False)], False),  # 15% of 40 are 6
        (5 * [(-1.0, True)] + 35 * [(-3.0, False)], True),
    ],
)
def test_a_source_beyond_the_bounds_is_named(rows, beyond):
    tally = Tally()
    tally.add_scores("good", scores(500 * [(-0.1, True)]))
    tally.add_scores("bad", scores(rows))
    unlikely = tally.unlikely(max_nats=6.0, min_likeliest=0.15)
    assert bool(unlikely) == beyond
    assert unlikely.startswith("log-probabilities of bad: " * beyond)


def test_everything_is_kept_dropped_or_rejected():
    tally = filled(7)
    assert (tally.kept, tally.dropped, tally.rejected.total(), tally.read) == (7, 14, 8, 29)
    assert Tally().read == 0


def test_every_field_adds_up():
    total = Tally()
    for n in (1, 10, 100):
        total.add(filled(n))
    for field in dataclasses.fields(Tally):
        parts = [getattr(filled(n), field.name) for n in (1, 10, 100)]
        if field.name in ("inconsistent", "worst", "random", "dropped_examples"):
            assert sorted(e["id"] for e in getattr(total, field.name)) == ["1", "10", "100"]
        elif field.name == "sources":
            assert total.sources["somebody (fu2023)"] == Counter(kept=111)
            assert total.sources["only 10"] == Counter(repeated=10)
        elif isinstance(parts[0], Counter):
            assert getattr(total, field.name) == parts[0] + parts[1] + parts[2]
        else:
            assert getattr(total, field.name) == sum(parts) > 0


def test_what_is_added_is_not_changed():
    total, part = Tally(), filled(3)
    total.add(part)
    total.add(filled(4))
    assert part == filled(3)


def test_positions_are_counted_by_kind_and_kept_mass():
    tally = Tally()
    kinds = ["soft"] * 5 + ["end", "no_token", "other_string"]
    tally.add_projection(projection(kinds, [0.0, 0.049, 0.05, 0.999, 1.0, 1, 1, 1]), example(0.5))
    assert tally.kinds == {"soft": 5, "end": 1, "no_token": 1, "other_string": 1}
    # 20 bins of 0.05; one-hot positions are in none, and 1.0 is in the last.
    assert tally.kept_mass == {"0": 2, "1": 1, "19": 2}
    assert tally.mass == pytest.approx(0.049 + 0.05 + 0.999 + 1)


def test_the_worst_examples_stay_whatever_the_order():
    shares = [0.9, 0.1, 0.5, 0.3, 0.7, 0.2, 0.4, 0.8]
    for order in (shares, shares[::-1]):
        left, right = Tally(), Tally()
        for i, share in enumerate(order):
            part = (left, right)[i % 2]
            part.add_projection(projection(["soft"], [1.0]), example(share, str(share)))
        left.add(right)
        assert [e["soft_share"] for e in left.worst] == sorted(shares)[:MOST_WORST]


def test_it_goes_through_json_unchanged():
    tally = filled(3)
    again = Tally.from_json(json.loads(json.dumps(tally.to_json())))
    assert again == tally
    again.add(filled(4))  # and can still be added to
    assert again.kept == 7


def test_the_summary_adds_up_in_its_first_line():
    fates = Counter(kept=1200, wrong_answer=30, no_answer=70)
    tally = Tally(fates=fates, rejected=Counter(a=5), tokens=4)
    tally.add_projection(
        projection(["soft", "soft", "end", "no_token"], [1, 0.5, 1, 1]), example(1)
    )
    assert tally.summary().splitlines() == [
        "1,305 read = 1,200 kept + 100 dropped + 5 rejected",
        "dropped: no_answer 70, wrong_answer 30",
        "rejected: a 5",
        "2 of 4 target positions soft (50.0%), mass kept there 0.750",
    ]
    assert Tally(fates=Counter(kept=1)).summary() == "1 read = 1 kept + 0 dropped + 0 rejected"


def test_the_summary_names_what_the_vocabulary_lacks_and_what_is_wrong():
    tally = Tally(
        fates=Counter(kept=9, unknown_characters=1),
        thoughts=Counter(left_out=2, learnt=1, tokens=90),
    )
    tally.add_characters(Counter("éé"), Counter("你"), Counter({"<": 1200, "\\boxed": 3}))
    tally.unknown_dropped.update("abcdefghijkl")
    tally.add_inconsistent({"id": "a", "steps": ["1 + 1 = 3"]})
    assert tally.unknown_share == 2 / 10
    assert tally.summary().splitlines()[2:] == [
        "replaced in the targets: 1,203 (< 1,200, \\boxed 3)",
        "unknown to the vocabulary in 1 targets: 2 (é 2)",
        "unknown to the vocabulary in dropped chains: 12 "
        "(a 1, b 1, c 1, d 1, e 1, f 1, g 1, h 1, i 1, j 1, 2 others)",
        "unknown to the vocabulary in 1 questions: 1 (你 1)",
        "kept, with a thought apart of 30 tokens on average: 2 without it (--chain learns it), "
        "1 with it",
        "kept with a wrong equation: 1 chains",
    ]


def test_the_first_inconsistent_chains_stay_whatever_the_order():
    names = [str(n) for n in range(10, 30)]
    for order in (names, names[::-1]):
        tally = Tally()
        for name in order:
            tally.add_inconsistent({"id": name, "steps": []})
        assert [e["id"] for e in tally.inconsistent] == names[:MOST_INCONSISTENT]
        assert tally.inconsistent_chains == 20


def test_examples_are_drawn_alike_however_the_records_are_spread():
    dropped = [{"id": str(i), "reason": ("empty", "repeated")[i % 2]} for i in range(40)]

    def drawn(shards):
        total = Tally()
        for shard in range(shards):
            part = Tally()
            for i in range(shard, 40, shards):
                part.add_dropped(dropped[i])
                part.add_projection(projection(["soft"], [0.5]), example(0.1, str(i)))
            total.add(part)
        return total.dropped_examples, [e["id"] for e in total.random]

    whole = drawn(1)
    assert whole == drawn(7)
    assert [e["reason"] for e in whole[0]] == ["empty"] * 2 + ["repeated"] * 2
    assert len(whole[1]) == MOST_RANDOM and whole[1] != sorted(whole[1], key=int)


def test_shares_are_of_all_target_positions_and_teachers_are_told_apart():
    tally = Tally()
    rows = projection(["soft", "end"], [0.5, 1])
    tally.add_target(2, "a (fu2023)", rows)
    tally.add_projection(rows, example(1.0))
    tally.add_target(8, "b", None)
    for fate, source in (("kept", "a (fu2023)"), ("kept", "b"), ("no_answer", "b")):
        tally.add_fate(fate, source)
    assert tally.source_soft == {"a (fu2023)": 1}
    assert tally.source_tokens == {"a (fu2023)": 2, "b": 8}
    summary = tally.summary()
    assert "1 of 10 target positions soft (10.0%)" in summary
    assert "a (fu2023): 1 of 1 kept (100.0%)\nb: 1 of 2 kept (50.0%)" in summary
    assert "kept without log-probabilities: 1 chains" in summary
