"""The CoT Collection (Kim et al. 2023, arXiv 2305.14045): 1.84M rationales over 1,060 tasks.

`cot_collection_cot` learns chain and answer, `cot_collection_direct` the answer alone, in the
paper's strings (template `kim2023`); `cot_collection_mix` has both, by default the first alone, as
the paper trains. `cot_collection_few_shot_cot` and `cot_collection_few_shot_direct` show exemplars
of the same task, as many as fit, which the paper does not; they stand in no mixture by themselves.
With a store of `cot-flax prepare` there are `cot_collection_teacher_cot` and
`cot_collection_teacher_direct`. A record without a rationale is asked directly. A long source loses
its end and not the words that ask; a long rationale loses its end and not the answer. What was cut
is counted and shown.

Flan-T5 was trained on the sources and answers of most of its tasks. The licence is in dispute: the
hub says CC BY 4.0, the authors' repository non-commercial use under OpenAI's terms (docs/data.md).
"""

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from cot_flax.data.registration import KIND, add_cot_task
from cot_flax.data.shards import Recipe, ShardedSource, text_of
from cot_flax.text.answers import kind_of_gold

MODULE = "cot_flax.tasks.cot_collection"
HUB_FILE = "hf://datasets/kaist-ai/CoT-Collection/data/CoT_collection_en.json"
DIRECTORY = "COT_COLLECTION_DIRECTORY"
FIELDS = ("id", "question", "rationale", "answer", KIND, "category", "task")
_CATEGORIES = ("config", "category", "type")  # names of one field, the best first


@gin.configurable(module=MODULE)
def data(directory: str | None = None, validation: float = 0.001) -> dict[str, Any]:
    """Where the collection lies, and which share of its sources is the split `validation`.

    The directory is a file (JSON, JSON Lines, Parquet), a pattern, a folder, a name on the hub, or
    a folder of shards; without it, the environment's COT_COLLECTION_DIRECTORY, else the hub's
    kaist-ai/CoT-Collection.
    """
    return {"directory": directory or os.environ.get(DIRECTORY), "validation": validation}


@gin.configurable(module=MODULE)
def caps(
    each: int | None = None,
    by_category: Mapping[str, int] | None = None,
    by_task: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """How many entries of a task are read, at most; None is all.

    The paper's data were capped at 1,000 a task for FLAN, P3 and dialogue, 800 for SNI and 600 for
    code, by the names of its scripts: `by_category = {"sni": 800}` beside `each = 1000`. Which
    entries stay is decided by their texts: fewer are always among the more.

    Args:
        each: of every task.
        by_category: of every task of a category (the entry's `config`), instead.
        by_task: of a task, instead of both.
    """
    return {"each": each, "by_category": by_category or {}, "by_task": by_task or {}}


@gin.configurable(module=MODULE)
def lengths(tokens: Mapping[str, int] | None = None) -> Mapping[str, int]:
    """To how many tokens `inputs` and `targets` are cut: the paper's 512 each, or the run's."""
    return tokens or {"inputs": 512, "targets": 512}


@gin.configurable(module=MODULE)
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the collection, or of a teacher's chains on it."""
    return directory


def entry_kind(target: str, labels: Sequence[str] = ()) -> str:
    """The kind of one entry's answer: of its target, and of all its labels where it has some.

    Labels of several kinds are texts: `yes`, `no` and `it is not possible to tell`.
    """
    kinds = {kind_of_gold(label) for label in (target, *labels)}
    return kinds.pop() if len(kinds) == 1 else "text"


def _files() -> str:
    return data()["directory"] or HUB_FILE


def _entry(record: Mapping[str, Any], place: str) -> dict[str, str]:
    """The texts of one entry; white space around a rationale is none of it."""
    labels = record.get("labels_list") or ()
    answer = text_of(record, "target", place)
    category = next((record[name] for name in _CATEGORIES if record.get(name)), "")
    number = place.rpartition(", ")[2].rpartition(" ")[2]
    return {
        "id": f"cot_collection-{number}",
        "question": text_of(record, "source", place),
        "rationale": text_of(record, "rationale", place, needed=False).strip(),
        "answer": answer,
        KIND: entry_kind(answer, list(map(str, labels))),
        "category": str(category),
        "task": str(record.get("task") or ""),
    }


def _recipe() -> Recipe:
    validation = data()["validation"]
    return Recipe("cot_collection", _entry, FIELDS, ("category", "task"), validation)


def _most(limit: int | None = None):
    bound = caps()

    def most(category: str, task: str) -> int | None:
        of_category = bound["by_category"].get(category, bound["each"])
        own = bound["by_task"].get(task, of_category)
        return own if limit is None else min(limit, limit if own is None else own)

    return most


SOURCE = ShardedSource(_files, _recipe, _most)
EXEMPLARS = ShardedSource(_files, _recipe, functools.partial(_most, 32))
"""Up to 32 entries of each task, which exemplars are drawn from."""

add_cot_task(
    "cot_collection",
    SOURCE,
    exemplars=EXEMPLARS,
    group="task",
    names={
        "zero_shot_cot": "cot",
        "zero_shot_answer": "direct",
        "few_shot_answer": "few_shot_direct",
        "cot_mix": "mix",
    },
    rates={"zero_shot_cot": 1.0, "zero_shot_answer": 0.0},
    answer_kind="text",
    template="kim2023",
    chains="some",
    cut=lengths,
    seen_by_flan=True,
    teacher_store=teacher_store,
)
