"""The papers' prompts, each from a question and the worked questions that are shown before it."""

import re
from collections.abc import Sequence

from cot_flax.teacher.questions import Question
from cot_flax.text.prompts import build_target

# Kim et al. send at most 3,900 tokens. Nothing here knows the teacher's tokens: 4 characters each.
KIM_PROMPT_CHARACTERS = 3_900 * 4

_OPTIONS = re.compile(r"\n\s*Options:\s*\n(?P<options>.*)", re.IGNORECASE | re.DOTALL)


def fu2023(question: Question, shown: Sequence[Question]) -> str:
    """The layout of the authors' `prompt_complex.txt`, and the question behind it.

    Source: Fu et al. 2023 (arXiv 2301.12726), `scripts/codex_decode_gsm8k.py`.
    """
    ask = "Question: {}\nLet's think step by step"
    exemplars = [f"{ask.format(item.question)}\n{_chain(item)}\n" for item in shown]
    return "\n".join([*exemplars, ask.format(question.question)])


def magister2022(question: Question, shown: Sequence[Question]) -> str:
    """Exemplars that give the right answer before the chain, as a hint.

    The wording is an assumption: Magister et al. 2022 (arXiv 2212.08410) say that the answer
    stands there, and do not print the prompt.
    """
    ask = "Q: {}\nA: (The correct answer is {}.)"
    exemplars = [
        f"{ask.format(item.question, item.answer)} {' '.join(item.rationale.split())}"
        f" The answer is {item.answer}.\n\n"
        for item in shown
    ]
    return "".join(exemplars) + ask.format(question.question, question.answer)


def ho2022(question: Question, shown: Sequence[Question] = ()) -> str:
    """Zero-shot-CoT, first step.

    Source: Ho et al. 2022 (arXiv 2212.10071), `src/data/format.py`.
    """
    return f"Q: {question.question}\nA: Let's think step by step."


def kim2023(question: Question, shown: Sequence[Question]) -> str:
    """Numbered demonstrations and the question with its answer; the rationale is left to write.

    Options are those that follow a line `Options:` of the question, as FLAN writes them. The last
    demonstrations go until the prompt has `KIM_PROMPT_CHARACTERS`.

    Source: Kim et al. 2023 (arXiv 2305.14045), `CoT_Rationale_Augmentation/run.py` and `utils.py`.
    """
    slots = [f"{_slot(item)}{item.rationale}\n\n\n\n" for item in shown] + [_slot(question)]
    prompt = "".join(f"[Example {i}]\n{slot}" for i, slot in enumerate(slots, 1))
    if len(prompt) > KIM_PROMPT_CHARACTERS and shown:
        return kim2023(question, shown[:-1])
    return prompt


def _chain(item: Question) -> str:
    return build_target(item.rationale, item.answer, "few_shot_cot")


def _slot(item: Question) -> str:
    text, options = item.question, ""
    if found := _OPTIONS.search(text):
        text = text[: found.start()]
        lines = [line.strip() for line in found["options"].splitlines() if line.strip()]
        options = "[Options]\n" + "".join(f"- {line.removeprefix('- ')}\n" for line in lines) + "\n"
    return (
        f"[Instruction and Question]\n{text.strip()}\n\n{options}"
        f"[Answer]\n{item.answer}\n\n[Rationale]\n"
    )
