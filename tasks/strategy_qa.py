"""StrategyQA (Geva et al. 2021): `strategy_qa_<format>`, yes or no.

Flan-T5 was trained on its rationales. Its own test split has no public golds; the labelled 2,290
are divided as Ho et al. 2022 do, 70 to 30 by NumPy's RandomState(0). The last tenth of the training
questions is the validation split.
"""

import gin

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import PublicFile, first_field, random_split, records_source

FILE = PublicFile(
    names=("strategyqa_train", "strategy_qa", "strategyqa"),
    origin="allenai.org/data/strategyqa (MIT)",
    macro="STRATEGY_QA_DIRECTORY",
    hub="ChilleD/StrategyQA",
)


@gin.configurable(module="cot_flax.tasks.strategy_qa")
def data(directory: str | None = None) -> str | None:
    """The folder of strategyqa_train.json; None reads the hub."""
    return directory


@gin.configurable(module="cot_flax.tasks.strategy_qa")
def teacher_store(directory: str | None = None) -> str | None:
    """The folder that `cot-flax prepare` made of the teacher's samples."""
    return directory


def read() -> list[dict]:
    """All labelled records, in the order of the file."""
    found = (_parse(record, place) for place, record in FILE.read(data()))
    return [{"id": f"strategy_qa-{i}"} | record for i, record in enumerate(found)]


def _parse(record, place):
    answer = record.get("answer")
    if isinstance(answer, bool):
        answer = "yes" if answer else "no"
    else:
        answer = first_field(record, ("answer",), str, place).strip().lower()
    facts = record.get("facts") or record.get("rationale") or ""
    rationale = facts if isinstance(facts, str) else " ".join(fact.strip() for fact in facts)
    return {
        "question": first_field(record, ("question",), str, place).strip(),
        "rationale": rationale.strip(),
        "answer": answer,
    }


def _records(split):
    found = read()
    places = random_split(len(found))
    first_held_out = len(places["train"]) * 9 // 10
    places["validation"] = places["train"][first_held_out:]
    places["train"] = places["train"][:first_held_out]
    return [found[place] for place in places[split]]


SOURCE = records_source(_records, ("train", "validation", "test"))

add_cot_task(
    "strategy_qa", SOURCE, answer_kind="yes_no", seen_by_flan=True, teacher_store=teacher_store
)
