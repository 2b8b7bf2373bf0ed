import collections

import gin
import pytest
import seqio

from cot_flax.data.registration import cot_task
from cot_flax.errors import UserError
from cot_flax.lab.world.vocabulary import VOCABULARY_PATH
from cot_flax.tasks import flan_cot
from cot_flax.text.answers import gold_answer
from cot_flax.text.prompts import FORMATS

NINE = "aqua creak ecqa esnli gsm8k qasc qed sensemaking strategyqa".split()  # noqa: SIM905
ROW = "Is {n} a number?\\nOptions:\\n- yes\\n- no\tyes\tIt counts {n} things.\\nSo it is."


@pytest.fixture(autouse=True)
def _bound(monkeypatch):
    monkeypatch.delenv(flan_cot.DIRECTORY, raising=False)
    gin.bind_parameter("cot_flax.data.features.t5_vocabulary_file.path", str(VOCABULARY_PATH))
    flan_cot._read.cache_clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for place, name in enumerate(NINE):
        rows = [ROW.format(n=n + 1000 * place) + "\n" for n in range(40 + 10 * place)]
        (tmp_path / f"{name}_train.tsv").write_text("".join(rows))
    monkeypatch.setenv(flan_cot.DIRECTORY, str(tmp_path))
    return tmp_path


def read(task, split="train", count=None):
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        None, split, shuffle=False, num_epochs=1 if count is None else None
    )
    return list(dataset.take(count or -1).as_numpy_iterator())


def test_the_nine_and_their_mixture_are_registered():
    assert sorted(flan_cot.KINDS) == NINE
    for name in NINE:
        for format in FORMATS:
            card = cot_task(f"flan_cot_{name}_{format}")
            assert card.seen_by_flan
            assert card.answer_kind == flan_cot.KINDS[name]
        assert len(seqio.get_mixture_or_task(f"flan_cot_{name}").tasks) == 4
    assert len(seqio.get_mixture_or_task("flan_cot_mix").tasks) == 36


def test_rows_become_records_and_line_breaks(folder):
    first = read("flan_cot_creak_zero_shot_cot")[0]
    assert first["inputs_pretokenized"].startswith(b"Q: Is 100")
    assert b"a number?\nOptions:\n- yes\n- no\n" in first["inputs_pretokenized"]
    assert first["targets_pretokenized"].endswith(b"things.\nSo it is.\nThe answer is yes")


def test_a_share_of_the_questions_is_held_out(folder):
    gin.bind_parameter("cot_flax.tasks.flan_cot.data.validation", 0.3)
    splits = {
        split: {e["question"] for e in read("flan_cot_strategyqa_zero_shot_cot", split)}
        for split in ("train", "validation")
    }
    assert not splits["train"] & splits["validation"]
    assert len(splits["train"] | splits["validation"]) == 120
    assert 15 <= len(splits["validation"]) <= 60


@pytest.mark.slow
def test_the_mixture_has_the_shares_of_the_sizes(folder):
    mixture = seqio.get_mixture_or_task("flan_cot_mix")
    rates = collections.Counter()
    for task in mixture.tasks:
        rates[task.name.split("_")[2]] += mixture.get_rate(task)
    sizes = {name: len(read(f"flan_cot_{name}_zero_shot_cot")) for name in NINE}
    shares = {name: n / sum(sizes.values()) for name, n in sizes.items()}
    assert {n: r / sum(rates.values()) for n, r in rates.items()} == pytest.approx(shares)
    assert len(read("flan_cot_mix", count=5)) == 5


def test_a_missing_file_says_where_it_comes_from(folder):
    (folder / "qed_train.tsv").unlink()
    with pytest.raises(UserError, match=r"qed_train.tsv.*google-research/FLAN.*FLAN_COT_DIRECTORY"):
        read("flan_cot_qed_zero_shot_cot")


def test_no_folder_is_named():
    with pytest.raises(UserError, match=r"no folder with aqua_train.tsv.*FLAN_COT_DIRECTORY"):
        read("flan_cot_aqua_zero_shot_cot")


@pytest.mark.parametrize("name", NINE)
def test_real_answers_are_of_their_kind(shared_data, monkeypatch, name):
    path = shared_data / "flan_cot" / f"{name}_train.tsv"
    if not path.exists():
        pytest.skip(f"no {path.name} there")
    monkeypatch.setenv(flan_cot.DIRECTORY, str(path.parent))
    found = [r for split in ("train", "validation") for r in flan_cot._records(name, split)]
    assert len(found) == path.read_bytes().count(b"\n")
    unread = [
        r["answer"] for r in found if gold_answer(r["answer"], kind=flan_cot.KINDS[name]) is None
    ]
    assert unread == []
