"""Word problems beside GSM8K, in PAL's form, Ho's and SVAMP's own."""

import json

import gin
import pytest

from cot_flax.data.mixtures import find_task
from cot_flax.data.registration import cot_task
from cot_flax.errors import UserError
from cot_flax.tasks import arithmetic
from cot_flax.text.answers import answers_match, extract_answer

DIRECTORY = "cot_flax.tasks.arithmetic.data.directory"
FOLD = "cot_flax.tasks.arithmetic.held_out.fold"


def write(path, records, lines=True):
    texts = [json.dumps(record) for record in records]
    path.write_text("\n".join(texts) if lines else f"[{','.join(texts)}]")
    gin.bind_parameter(DIRECTORY, str(path.parent))


def test_pals_numbers_are_written_as_people_write_them(tmp_path):
    golds = [9, 43.0, 9.43, 3.33333]
    write(tmp_path / "asdiv.jsonl", [{"input": f"How many, {g}? ", "target": g} for g in golds])
    found = arithmetic.read("asdiv")
    assert [record["answer"] for record in found] == ["9", "43", "9.43", "3.33333"]
    assert found[0] == {
        "id": "asdiv-0", "question": "How many, 9?", "rationale": "", "answer": "9"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("single_eq.json", {"question": "How many?", "answer": "43.0"}),
        ("singleeq.json", {"question": "How many?", "answer": 43.0}),
    ],
)
def test_hos_form_is_read(tmp_path, name, record):
    write(tmp_path / name, [record], lines=False)
    (found,) = arithmetic.read("singleeq")
    assert found["question"] == "How many?"
    assert answers_match("43", found["answer"], kind="number")


def test_svamps_body_has_one_full_stop(tmp_path):
    records = [
        {"Body": body, "Question": "How many?", "Answer": 2.0} for body in ("He has 2", "He has 2.")
    ]
    write(tmp_path / "svamp.json", records, lines=False)
    assert {r["question"] for r in arithmetic.read("svamp")} == {"He has 2. How many?"}


def test_a_fold_holds_out_every_fifth_question_and_its_repeats(tmp_path):
    records = [{"input": f"What is {i % 10} plus 1?", "target": i % 10 + 1} for i in range(20)]
    write(tmp_path / "asdiv.jsonl", records)
    source = find_task("asdiv_zero_shot_cot").source
    assert source.splits == ("test",)
    tests = []
    for fold in range(5):
        gin.bind_parameter(FOLD, fold)
        assert source.splits == ("train", "test")
        train, test = (questions(source, split) for split in ("train", "test"))
        assert len(train) + len(test) == 20
        assert len(test) == 4
        assert not set(train) & set(test)
        tests += test
    assert len(set(tests)) == 10
    gin.bind_parameter(FOLD, 5)
    with pytest.raises(UserError, match="fold 5 of 5; expected 0 to 4"):
        source.get_dataset("test", shuffle=False)


def questions(source, split):
    return [r["question"] for r in source.get_dataset(split, shuffle=False).as_numpy_iterator()]


def test_what_is_missing_is_named_with_its_origin(tmp_path):
    with pytest.raises(UserError, match=r"no ARITHMETIC_DIRECTORY; expected asdiv.json.*pal.*set"):
        arithmetic.read("asdiv")
    gin.bind_parameter(DIRECTORY, str(tmp_path))
    with pytest.raises(UserError, match=r"mawpsaddsub.json\(l\) or addsub.*Apache-2.0"):
        arithmetic.read("addsub")
    write(tmp_path / "asdiv.jsonl", [{"problem": "?"}])
    with pytest.raises(UserError, match=r"line 1: .*fields problem; expected one of input"):
        arithmetic.read("asdiv")


def test_the_cards_say_transfer(tmp_path):
    for name in (*arithmetic.FILES, "mawps"):
        card = cot_task(f"{name}_zero_shot_cot")
        assert (card.role, card.answer_kind, card.seen_by_flan) == ("transfer", "number", True)


def test_sizes_and_golds_of_the_papers(shared_data):
    """Magister et al. 2022, and Wei et al. 2022, section 3.1."""
    gin.bind_parameter(DIRECTORY, str(shared_data / "pal"))
    sizes = {"svamp": 1000, "asdiv": 2096, "singleop": 562, "singleeq": 508, "addsub": 395}
    sizes |= {"multiarith": 600, "mawps": 2065}
    for name, size in sizes.items():
        found = arithmetic.read(name)
        assert len(found) == size
        for record in found:
            closing = f"Thus. The answer is {record['answer']}"
            answer = extract_answer(closing, kind="number", mode="strict")
            assert answers_match(answer, record["answer"], kind="number")
