"""GSM8K (Cobbe et al. 2021): `gsm8k_<format>`, and `gsm8k_teacher_<format>` from a store.

Flan-T5 was trained on its rationales.

From a local directory with train.jsonl and test.jsonl where one is bound, else from TFDS. The last
500 training questions are the validation split, or the 200 of Fu et al. 2023 where
`validation.questions` says so; neither exemplars nor teacher chains come from it, nor from the test
split.
"""

import functools

import gin
import tensorflow as tf

from cot_flax.data.features import T5Vocabulary
from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import read_fields, records_source
from cot_flax.errors import UserError
from cot_flax.files import unreachable
from cot_flax.teacher.questions import VALIDATION as VALIDATION_OF
from cot_flax.text.calculator import strip_marks

_, VALIDATION = VALIDATION_OF["gsm8k"]
_ORIGIN = "https://raw.githubusercontent.com"  # where TFDS downloads from
VOCABULARY = T5Vocabulary()

# The training questions by which Fu et al. 2023 choose checkpoints (validation_index.npy of
# FranxYao/FlanT5-CoT-Specialization at a8ffd51, sorted). The authors train on them, too.
# fmt: off
FU2023_DEV = (
    9, 14, 47, 65, 120, 126, 134, 136, 201, 204, 250, 315, 461, 477, 504, 515, 522, 559, 584,
    586, 622, 676, 781, 790, 880, 976, 997, 1062, 1081, 1096, 1121, 1154, 1185, 1206, 1222,
    1275, 1345, 1359, 1378, 1387, 1392, 1554, 1617, 1624, 1625, 1653, 1716, 1746, 1750, 1808,
    1942, 1968, 1979, 1984, 2014, 2049, 2057, 2088, 2097, 2172, 2181, 2231, 2257, 2281, 2354,
    2362, 2438, 2475, 2524, 2544, 2746, 2809, 2813, 2834, 2835, 2848, 2857, 2877, 2893, 2921,
    2936, 2943, 2963, 2988, 3005, 3006, 3026, 3063, 3071, 3119, 3193, 3232, 3235, 3246, 3271,
    3412, 3631, 3649, 3768, 3776, 3833, 3835, 3913, 3920, 3975, 3982, 3983, 4029, 4040, 4041,
    4163, 4274, 4316, 4337, 4350, 4362, 4382, 4391, 4472, 4497, 4500, 4528, 4654, 4662, 4671,
    4676, 4741, 4761, 4890, 4905, 4917, 4924, 4925, 5029, 5039, 5092, 5171, 5218, 5232, 5260,
    5262, 5296, 5320, 5336, 5342, 5347, 5372, 5392, 5403, 5411, 5509, 5555, 5566, 5635, 5638,
    5657, 5823, 5855, 5860, 5885, 5894, 5919, 5961, 6039, 6129, 6180, 6227, 6235, 6280, 6298,
    6350, 6446, 6521, 6562, 6588, 6674, 6735, 6742, 6754, 6761, 6824, 6858, 6861, 6869, 6883,
    6907, 7001, 7069, 7093, 7097, 7171, 7176, 7202, 7207, 7289, 7308, 7316, 7437, 7444, 7455,
)
# fmt: on


@gin.configurable(module="cot_flax.tasks.gsm8k")
def data(directory: str | None = None) -> str | None:
    """Where train.jsonl and test.jsonl of openai/grade-school-math lie; None is TFDS."""
    return directory


@gin.configurable(module="cot_flax.tasks.gsm8k")
def validation(questions: str = "last_500") -> str:
    """Which training questions are the validation split, and not trained on.

    Args:
        questions: "last_500", or "fu2023": the 200 of `FU2023_DEV`.
    """
    if questions not in ("last_500", "fu2023"):
        raise UserError(
            f"gsm8k.validation.questions {questions!r}", "last_500 or fu2023", "correct the name"
        )
    return questions


@gin.configurable(module="cot_flax.tasks.gsm8k")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's samples."""
    return directory


def read(file: str) -> list[dict]:
    """All records of the file `train` or `test`."""
    return [_parse(record, f"gsm8k-{file}-{i}") for i, record in enumerate(_raw(file))]


def _raw(file):
    return _from_tfds(file) if data() is None else _from_jsonl(file)


def _records(split):
    file = "test" if split == "test" else "train"
    records = _raw(file)
    if file == "train" and validation() == "fu2023":
        return _fu2023(records, split)
    if file == "train":
        records = records[-VALIDATION:] if split == "validation" else records[:-VALIDATION]
    return [_parse(record, f"gsm8k-{split}-{i}") for i, record in enumerate(records)]


def _fu2023(records, split):
    """The 200 or the others; ids count the questions of the training file."""
    if len(records) <= FU2023_DEV[-1]:
        raise UserError(
            f"{len(records)} training questions of GSM8K",
            "its 7,473, in which fu2023's validation questions are counted",
            "fetch the whole file, or leave gsm8k.validation.questions at last_500",
        )
    dev = frozenset(FU2023_DEV)
    return [
        _parse(record, f"gsm8k-{split}-{i}")
        for i, record in enumerate(records)
        if (i in dev) == (split == "validation")
    ]


def _from_jsonl(file):
    return read_fields(data(), file, ("question", "answer"))


@functools.cache
def _from_tfds(file):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder("gsm8k")
        if not builder.data_path.exists() and (why := unreachable(_ORIGIN)):
            raise ConnectionError(why)
        builder.download_and_prepare()
        dataset = builder.as_dataset(file)
    except Exception as error:  # TFDS has no common base for what a download can raise
        needed = "a network or a prepared TFDS directory"
        if isinstance(error, ImportError):
            needed = "the packages that TFDS imports"
        raise UserError(
            f"no GSM8K from TFDS ({type(error).__name__}: {str(error).partition(chr(10))[0]})",
            needed,
            "set GSM8K_DIRECTORY to a folder with train.jsonl and test.jsonl",
        ) from error
    return [
        {name: tf.compat.as_text(record[name]) for name in ("question", "answer")}
        for record in dataset.as_numpy_iterator()
    ]


def _parse(record, id):
    solution, _, answer = record["answer"].partition("####")
    if not answer.strip():
        raise UserError(f"{id} without an answer", "a solution that ends in #### N", "repair it")
    return {
        "id": id,
        "question": record["question"],
        "rationale": strip_marks(solution).strip(),
        "answer": answer.strip(),
        "steps": solution.count("<<"),
    }


SOURCE = records_source(_records, ("train", "validation", "test"))

add_cot_task(
    "gsm8k",
    SOURCE,
    seen_by_flan=True,
    vocabulary=VOCABULARY,
    teacher_store=teacher_store,
)
