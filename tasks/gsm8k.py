"""GSM8K (Cobbe et al. 2021): `gsm8k_<format>`, and `gsm8k_teacher_<format>` from a store.

Flan-T5 was trained on its rationales.

From a local directory with train.jsonl and test.jsonl where one is bound, else from TFDS. The last
500 training questions are the validation split; neither exemplars nor teacher chains come from it,
nor from the test split.
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


@gin.configurable(module="cot_flax.tasks.gsm8k")
def data(directory: str | None = None) -> str | None:
    """Where train.jsonl and test.jsonl of openai/grade-school-math lie; None is TFDS."""
    return directory


@gin.configurable(module="cot_flax.tasks.gsm8k")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's samples."""
    return directory


def _records(split):
    file = "test" if split == "test" else "train"
    records = _from_tfds(file) if data() is None else _from_jsonl(file)
    if file == "train":
        records = records[-VALIDATION:] if split == "validation" else records[:-VALIDATION]
    return [_parse(record, f"gsm8k-{split}-{i}") for i, record in enumerate(records)]


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
