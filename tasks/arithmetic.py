"""Arithmetic word problems beside GSM8K: `svamp_<format>`, `asdiv_<format>` and so on.

ASDiv, SVAMP and the four parts of MAWPS, as PAL's files have them: all are test questions, on which
is seen whether a skill carries over. Few-shot prompts show GSM8K's training questions, as those of
Fu et al. 2023 do. `mawps` is the four parts together. Students are trained on MAWPS and ASDiv, too
(Magister et al. 2022): with `held_out.fold` bound these have a train split.

Super-NaturalInstructions, of which Flan-T5 saw the training part, has problems of all of them.
"""

import functools

import gin
import numpy as np

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import PublicFile, first_field, number_text, records_source
from cot_flax.errors import UserError
from cot_flax.tasks import gsm8k
from cot_flax.text.prompts import normalize_question

_PAL = "datasets/ of github.com/reasoning-machines/pal (Apache-2.0)"
_FILE = functools.partial(PublicFile, origin=_PAL, macro="ARITHMETIC_DIRECTORY")
FILES = {
    "svamp": _FILE(("svamp",), hub="ChilleD/SVAMP"),
    "asdiv": _FILE(("asdiv",)),
    "multiarith": _FILE(("mawpsmultiarith", "multiarith"), hub="ChilleD/MultiArith"),
    "addsub": _FILE(("mawpsaddsub", "addsub")),
    "singleeq": _FILE(("mawpssingleeq", "singleeq", "single_eq")),
    "singleop": _FILE(("mawpssingleop", "singleop", "single_op")),
}
"""By data set; the names without `mawps` are those of Ho et al. 2022."""

MAWPS = ("multiarith", "addsub", "singleeq", "singleop")
TRAINED = ("mawps", "asdiv")
_QUESTION = ("input", "question", "question_concat")
_ANSWER = ("target", "answer", "final_ans", "Answer")


@gin.configurable(module="cot_flax.tasks.arithmetic")
def data(directory: str | None = None) -> str | None:
    """The folder of PAL's files; None reads the hub, where it has them."""
    return directory


@gin.configurable(module="cot_flax.tasks.arithmetic")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's chains on MAWPS or ASDiv."""
    return directory


@gin.configurable(module="cot_flax.tasks.arithmetic")
def held_out(fold: int | None = None, folds: int = 5) -> tuple[int | None, int]:
    """Which fold of a cross-validation is the test split of MAWPS and ASDiv.

    Args:
        fold: from 0; the others are the train split. None: all questions are test questions.
        folds: their number; Magister et al. 2022 have five.

    Raises:
        UserError: no such fold.
    """
    if fold is not None and not 0 <= fold < folds:
        wanted = f"0 to {folds - 1}, or None"
        raise UserError(f"fold {fold} of {folds}", wanted, "correct held_out.fold")
    return fold, folds


def read(name: str) -> list[dict]:
    """All records of a data set, in the order of its files."""
    if name == "mawps":
        return [record for part in MAWPS for record in read(part)]
    found = [_parse(record, place) for place, record in FILES[name].read(data())]
    return [{"id": f"{name}-{i}"} | record for i, record in enumerate(found)]


def _parse(record, place):
    if "Body" in record:  # SVAMP's own file, where it is a text with or without its full stop
        body = first_field(record, ("Body",), str, place).strip()
        stop = "" if body.endswith((".", "?", "!", ",")) else "."
        question = f"{body}{stop} {first_field(record, ('Question',), str, place).strip()}"
    else:
        question = first_field(record, _QUESTION, str, place).strip()
    answer = first_field(record, _ANSWER, str | int | float, place)
    return {"question": question, "rationale": "", "answer": number_text(answer)}


def _records(split, name):
    found = read(name)
    fold, folds = held_out() if name in TRAINED else (None, 1)
    if fold is None:
        return found
    keys = [normalize_question(record["question"]) for record in found]
    different = list(dict.fromkeys(keys))  # a question that stands there twice is in one fold
    order = np.random.RandomState(0).permutation(len(different))
    folds_of = {different[place]: i % folds for i, place in enumerate(order)}
    return [
        record
        for record, key in zip(found, keys, strict=True)
        if (folds_of[key] == fold) == (split == "test")
    ]


def _splits(name):
    is_divided = name in TRAINED and held_out()[0] is not None
    return ("train", "test") if is_divided else ("test",)


for name in (*FILES, "mawps"):
    add_cot_task(
        name,
        records_source(functools.partial(_records, name=name), functools.partial(_splits, name)),
        exemplars=gsm8k.SOURCE,
        role="transfer",
        seen_by_flan=True,
        teacher_store=teacher_store if name in TRAINED else None,
    )
