"""The embedded world's general abilities, answer only, and the mixture that a base model learns.

`word_sorting_zero_shot_answer` and so on; `world_base_mix` is all of them and the stories' answers,
so a base model, like Flan-T5, knows the tasks before anyone specialises it.
"""

import functools

import seqio

from cot_flax.data.registration import add_cot_task
from cot_flax.data.sources import records_source
from cot_flax.lab.world.abilities import ABILITIES, make_items
from cot_flax.tasks.stories import VOCABULARY

COUNTS = {"train": 4000, "validation": 100, "test": 200}


def _records(split, ability):
    items = make_items(ability, COUNTS[split], split=split)
    return [
        {
            "id": f"{ability}-{split}-{i}",
            "question": question,
            "rationale": "",
            "answer": answer,
        }
        for i, (question, answer) in enumerate(items)
    ]


for ability in ABILITIES:
    add_cot_task(
        ability,
        records_source(functools.partial(_records, ability=ability), COUNTS),
        formats=("zero_shot_answer",),
        answer_kind="text",
        role="general",
        vocabulary=VOCABULARY,
    )

seqio.MixtureRegistry.add(
    "world_base_mix",
    [(f"{name}_zero_shot_answer", 1.0) for name in (*ABILITIES, "stories")],
)
