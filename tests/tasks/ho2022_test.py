"""The splits and prompts of Ho et al. 2022: a small folder for form, the real one for numbers."""

import json

import gin
import numpy as np
import pytest

from cot_flax.data.mixtures import find_task
from cot_flax.data.registration import cot_task
from cot_flax.data.sources import random_split
from cot_flax.errors import UserError
from cot_flax.tasks import ho2022
from cot_flax.text.answers import answers_match, extract_answer
from cot_flax.text.prompts import build_input, build_target

DIRECTORY = "cot_flax.tasks.ho2022.data.directory"
SIZE = "cot_flax.tasks.ho2022.subset.size"
PROMPT = (
    "Q: Is it heads up?\nA: Nobody flips it.\nIt is. The answer is yes.\n"
    "Q: And now?\nA: Ann flips it. The answer is no."
)


@pytest.fixture
def small(tmp_path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "split").mkdir()
    items = [{"question": f" Ann flips {i} coins. Heads? ", "answer": "yes"} for i in range(20)]
    (tmp_path / "dataset" / "coin_flip.json").write_text(json.dumps(items))
    prompts = {"coin_flip": {"prompt": PROMPT}}
    (tmp_path / "few_shot_cot_prompts.json").write_text(json.dumps(prompts))
    gin.bind_parameter(DIRECTORY, str(tmp_path))
    return tmp_path


def records(name, split):
    return find_task(f"{name}_zero_shot_cot").source._make(split)


def places(name, split):
    return [int(record["id"].rpartition("-")[2]) for record in records(name, split)]


def test_without_a_file_the_split_is_by_numpys_permutation(small):
    order = np.random.RandomState(0).permutation(20).tolist()
    assert places("ho2022_coin_flip", "train") == sorted(order[:14])
    assert places("ho2022_coin_flip", "test") == sorted(order[14:])
    assert records("ho2022_coin_flip", "test")[0]["question"].startswith("Ann flips")


def test_a_split_of_the_folder_goes_before_the_rule(small):
    path = small / "split" / "coin_flip__default.json"
    path.write_text(json.dumps({"train": [3, 4], "test": [0]}))
    assert places("ho2022_coin_flip", "train") == [3, 4]
    assert places("ho2022_coin_flip", "test") == [0]
    path.write_text(json.dumps({"train": [20], "test": [0]}))
    with pytest.raises(UserError, match="20 records of coin_flip; expected more than 20"):
        records("ho2022_coin_flip", "train")
    path.write_text("[1]")
    with pytest.raises(UserError, match="without train and test"):
        records("ho2022_coin_flip", "train")


def test_a_subset_is_the_first_of_a_permutation_of_the_training_questions(small):
    train = places("ho2022_coin_flip", "train")
    test = places("ho2022_coin_flip", "test")
    gin.bind_parameter(SIZE, 8)
    assert places("ho2022_coin_flip", "train") == list(
        np.random.RandomState(0).permutation(train)[:8]
    )
    assert places("ho2022_coin_flip", "test") == test
    left = find_task("ho2022_coin_flip_zero_shot_cot").source.left_out()
    others = set(train) - set(places("ho2022_coin_flip", "train"))
    assert sorted(left) == sorted(f"Ann flips {i} coins. Heads?" for i in others)
    gin.bind_parameter(SIZE, 0)
    with pytest.raises(UserError, match=r"subset\.size 0"):
        records("ho2022_coin_flip", "train")


def test_the_few_shot_prompt_is_the_authors(small):
    card = cot_task("ho2022_fs_coin_flip_few_shot_cot")
    assert (card.exemplars, card.shots, card.answer_kind) == ("fixed", 2, "yes_no")
    shown = ho2022.exemplars("coin_flip")
    text = build_input("Then?", "few_shot_cot", shown, ho2022.FEW_SHOT)
    assert text == PROMPT + "\nQ: Then?\nA:"
    target = build_target("Bo flips.", "no", "few_shot_cot", ho2022.FEW_SHOT)
    assert target == "Bo flips. The answer is no."


def test_what_is_missing_is_named_with_its_origin(small):
    with pytest.raises(UserError, match=r"svamp.json\(l\).*itsnamgyu/reasoning-teacher \(MIT\)"):
        records("ho2022_svamp", "test")
    with pytest.raises(UserError, match=r"no file .*multiarith__template\.json"):
        ho2022.split_of("multiarith", "template")
    gin.clear_config()
    with pytest.raises(UserError, match="no HO2022_DIRECTORY; expected data/ of"):
        records("ho2022_svamp", "test")


def test_the_student_sees_the_papers_strings(small):
    card = cot_task("ho2022_coin_flip_zero_shot_cot")
    assert (card.template, card.role) == ("ho2022", "train")


SIZES = {
    "single_eq": (356, 152),
    "addsub": (276, 119),
    "multiarith": (420, 180),
    "gsm8k": (7473, 1319),
    "aqua": (10_000, 254),
    "svamp": (700, 300),
    "date_understanding": (258, 111),
    "tracking_shuffled_objects": (525, 225),
    "last_letter_concatenation": (350, 150),
    "coin_flip": (350, 150),
    "commonsense_qa": (9741, 1221),
    "strategy_qa": (1603, 687),
}  # methods: its table of data sets
TOTALS = {key: sum(sizes) for key, sizes in SIZES.items()} | {"aqua": 97_467 + 254}


@pytest.fixture
def real(shared_data):
    gin.bind_parameter(DIRECTORY, str(shared_data / "reasoning_teacher"))
    gin.bind_parameter("cot_flax.tasks.gsm8k.data.directory", str(shared_data / "gsm8k"))


def test_the_rule_gives_the_papers_sizes_and_the_authors_files(real):
    assert set(SIZES) == set(ho2022.KINDS)
    for key, sizes in SIZES.items():
        by_rule = ho2022.default_split(key, TOTALS[key])
        assert tuple(len(by_rule[split]) for split in ("train", "test")) == sizes
        assert by_rule == ho2022.split_of(key)
    assert random_split(508)["train"] == ho2022.split_of("single_eq")["train"]


def test_template_splits_hold_out_whole_templates(real):
    for key, sizes in {"multiarith": (413, 187), "date_understanding": (261, 108)}.items():
        found = {split: places(f"ho2022_{key}_template", split) for split in ("train", "test")}
        assert (len(found["train"]), len(found["test"])) == sizes
        assert sorted(found["train"] + found["test"]) == list(range(TOTALS[key]))


@pytest.mark.parametrize("size", [8, 32, 128])
def test_few_shot_subsets(real, size):
    train = ho2022.split_of("date_understanding")["train"]
    gin.bind_parameter(SIZE, size)
    chosen = places("ho2022_date_understanding", "train")
    assert chosen == np.random.RandomState(0).permutation(train)[:size].tolist()
    assert len(set(chosen)) == size


def test_gold_answers_are_right_in_the_papers_target(real):
    for key in ho2022.KINDS.keys() - {"aqua"}:
        kind = cot_task(f"ho2022_{key}_zero_shot_cot").answer_kind
        for split, size in zip(("train", "test"), SIZES[key], strict=True):
            found = records(f"ho2022_{key}", split)
            assert len(found) == size
            for record in found:
                answer = extract_answer(f"So. --> {record['answer']}", kind=kind, mode="strict")
                assert answers_match(answer, record["answer"], kind=kind), (key, record)


def test_the_eleven_prompts_are_the_authors_byte_for_byte(real):
    shots = []
    for key in ho2022.KINDS.keys() - {ho2022.WITHOUT_PROMPT}:
        shown = ho2022.exemplars(key)
        text = build_input("Why?", "few_shot_cot", shown, ho2022.FEW_SHOT)
        assert text == ho2022.few_shot_prompt(key) + "\nQ: Why?\nA:"
        shots.append(len(shown))
    assert sorted(shots) == [4, 6, 6, 7, 8, 8, 8, 8, 8, 8, 8]
