import dataclasses

import pytest

from cot_flax.chains.merging import merge_samples
from cot_flax.chains.samples import read_samples, write_samples
from cot_flax.errors import UserError
from cot_flax.lab.world.stories import make_stories
from cot_flax.lab.world.teacher import make_samples


@pytest.fixture(scope="module")
def runs():
    """Two runs over the same stories, with other chains but the same numbers."""
    stories = make_stories(20, split="train")
    return [list(make_samples(stories, samples=3, seed=seed)) for seed in (1, 2)]


def test_chains_of_a_question_come_together_in_the_order_of_their_files(runs, tmp_path):
    paths = [tmp_path / f"{i}.jsonl" for i in range(2)]
    for path, run in zip(paths, runs, strict=True):
        write_samples(path, run)
    out = tmp_path / "all.jsonl.gz"
    assert merge_samples(paths, out) == 120
    merged = list(read_samples(out))
    blocks = [merged[i : i + 6] for i in range(0, 120, 6)]
    assert len({block[0].id for block in blocks}) == 20
    for block in blocks:
        own = [s for run in runs for s in run if s.id == block[0].id]
        expected = [dataclasses.replace(s, sample=i) for i, s in enumerate(own)]
        assert block == expected
    assert {path.name for path in tmp_path.iterdir()} == {"0.jsonl", "1.jsonl", "all.jsonl.gz"}


def test_a_file_may_be_merged_onto_itself(runs, tmp_path):
    path = tmp_path / "samples.jsonl"
    scattered = runs[0][::3] + runs[0][1::3] + runs[0][2::3]
    write_samples(path, scattered)
    merge_samples([path], path)
    ids = [s.id for s in read_samples(path)]
    assert sorted(ids) == sorted(s.id for s in scattered)
    assert [ids[i] for i in range(0, 60, 3)] == list(dict.fromkeys(ids))


def test_a_bad_line_leaves_the_old_file(runs, tmp_path):
    path, out = tmp_path / "samples.jsonl", tmp_path / "out.jsonl"
    write_samples(out, runs[1])
    before = out.read_bytes()
    path.write_text("{}\n")
    with pytest.raises(UserError, match="line 1: no field 'id'"):
        merge_samples([path], out)
    assert out.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2
