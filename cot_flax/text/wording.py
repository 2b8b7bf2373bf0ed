"""The words around questions and answers: ours in English, and those of other languages.

A `Wording` is the setting of a data set or a scenario. `LANGUAGES` has one for each language, with
the words by which answers are found in a text of that language (`answers.ANSWER_MARKER`).
"""

import re
from dataclasses import dataclass

from cot_flax.errors import UserError

PLACE = "{answer}"


def has_words(text: str) -> bool:
    """Whether there is a letter or a digit."""
    return re.search(r"[^\W_]", text) is not None


@dataclass(frozen=True)
class Wording:
    """What stands in every prompt and target of a data set.

    Attributes:
        cue: asks for a chain, on the line behind the question.
        closing: the sentence that gives the answer, with `{answer}` in its place; without it the
            answer follows the words.
        markers: words behind which an answer is found, beside those of the closing sentence and of
            `answers.ANSWER_MARKER`.

    Raises:
        UserError: a cue or a closing sentence without words, or a marker without any.
    """

    cue: str = "Let's think step by step"
    closing: str = f"The answer is {PLACE}"
    markers: tuple[str, ...] = ()

    def __post_init__(self):
        closing = self.closing
        if PLACE not in closing:
            gap = " " * (closing[-1:].isascii() and not closing.endswith(" "))
            object.__setattr__(self, "closing", closing + gap + PLACE)
        object.__setattr__(self, "markers", tuple(self.markers))  # JSON has lists
        told = {"cue": self.cue, "closing": self.head}
        for name, words in [*told.items(), *(("markers", marker) for marker in self.markers)]:
            if not has_words(words):
                raise UserError(
                    f"{name} {words!r}", "words, such as `答案是`", "write them, or leave it out"
                )

    @property
    def head(self) -> str:
        """What stands before the answer in the closing sentence."""
        return self.closing.partition(PLACE)[0]

    @property
    def heads(self) -> tuple[str, ...]:
        """All words, without spaces around them, behind which this wording has answers."""
        return (self.head.strip(), *(marker.strip() for marker in self.markers))

    def close(self, answer: str) -> str:
        """The closing sentence."""
        return self.closing.replace(PLACE, answer)


ENGLISH = Wording()


@dataclass(frozen=True)
class Language:
    """One language's wording, and the regular expressions of how it announces an answer.

    Attributes:
        wording: what prompts and targets say.
        nouns: the word for an answer, followed by one of `verbs` or a colon.
        attributes: words that may stand between noun and verb.
        verbs: what links the noun to the answer.
        phrases: markers that need no verb.
    """

    wording: Wording
    nouns: str = ""
    attributes: str = ""
    verbs: str = ""
    phrases: str = ""


LANGUAGES = {
    "en": Language(
        ENGLISH,
        nouns="answer",
        verbs=r"is|equals|comes\s+to",
        phrases=r"(?:^|\n)[#*_ ]*(?:the )?(?:final )?answer[*_ ]*\n",
    ),
    "es": Language(
        Wording("Pensemos paso a paso", "La respuesta es {answer}"),
        nouns="respuesta",
        attributes="final|correcta",
        verbs="es",
    ),
    "fr": Language(
        Wording("Réfléchissons étape par étape", "La réponse est {answer}"),
        nouns="r[ée]ponse",
        attributes="finale|correcte",
        verbs="est",
    ),
    "de": Language(
        Wording("Denken wir Schritt für Schritt nach", "Die Antwort ist {answer}"),
        nouns="antwort",
        verbs="ist|lautet",
    ),
    "pt": Language(
        Wording("Vamos pensar passo a passo", "A resposta é {answer}"),
        nouns="resposta",
        attributes="final|correta",
        verbs="é",
    ),
    "it": Language(
        Wording("Ragioniamo passo dopo passo", "La risposta è {answer}"),
        nouns="risposta",
        attributes="finale|corretta",
        verbs="è",
    ),
    "ru": Language(
        Wording("Давайте рассуждать шаг за шагом", "Ответ: {answer}"),
        nouns="ответ",
    ),
    "zh": Language(
        Wording("让我们一步一步地思考", "答案是{answer}"),
        phrases=r"答案(?:\s*(?:是|为|為|[:：]))?|(?:^|\n)\s*答\s*[:：]",
    ),
    "ja": Language(
        Wording("一歩ずつ考えましょう", "答えは{answer}"),
        phrases="答え(?:は|[:：])|(?:^|\n)\\s*答\\s*[:：]",
    ),
    "ko": Language(
        Wording("단계별로 생각해 봅시다", "답은 {answer}"),
        phrases=r"(?<!\w)(?:정답|답)(?:은(?=\s)|\s*[:：])",
    ),
}
"""By the code of ISO 639-1."""


def written_in(text: str) -> str | None:
    """The language, other than English, whose closing sentence or script a text has, if any."""
    for code, known in LANGUAGES.items():
        if code != "en" and known.wording.head.strip(" :").casefold() in text.casefold():
            return code
    letters = [c for c in text if c.isalpha()]
    for code, script in _SCRIPTS.items():
        if len(re.findall(script, text)) * _MANY > len(letters):
            return code
    return None


# Kana come before the Chinese characters that Japanese writes, too.
_SCRIPTS = {"ja": "[ぁ-ヿ]", "ko": "[가-힣]", "zh": "[一-鿿]", "ru": "[А-я]"}
_MANY = 5  # of so many letters at least one
