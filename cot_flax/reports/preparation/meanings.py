"""What the names in a preparation's report mean: reasons, and kinds of target positions."""

from typing import NamedTuple

REASONS = {
    # dropped: filtering, selection and preparation
    "malformed": "Its reader marked it as broken.",
    "empty": "The teacher wrote nothing.",
    "truncated": "The teacher was cut off at its token limit.",
    "no_answer": "The chain states no answer of the kind asked for.",
    "wrong_answer": "The chain's answer is not the gold answer.",
    "unlabelled": "There is no gold answer, which these rules need.",
    "unreadable_gold_answer": "The gold answer holds none of the kind asked for.",
    "fu2023_wrong_answer": "Fu et al. 2023: the last number is not the gold answer's.",
    "ho2022_wrong_answer": "Ho et al. 2022: the cleansed answer is not the cleansed gold one.",
    "kim2023_f1_answer_first": "Kim et al. 2023, f1: the first sentence gives the answer away.",
    "kim2023_f2_no_answer": "Kim et al. 2023, f2: the gold answer is not in the rationale.",
    "kim2023_f3_unfinished": "Kim et al. 2023, f3: the rationale ends without punctuation.",
    "kim2023_f5_repeated": "Kim et al. 2023, f5: the rationale was written more than once.",
    "no_logprobs": "It has no log-probabilities, and they were required.",
    "inconsistent_step": "An equation in the chain does not hold.",
    "repeated": "The same words in the same order as another chain of the question.",
    "near_identical": "Its wording is too similar to another chain of the question.",
    "unbalanced": "Enough chains of the question have the same equations.",
    "over_limit": "The question has as many chains as are wanted.",
    "too_long": "The chain or its question has more tokens than allowed.",
    # rejected: records and samples that cannot be read
    "bad_json": "The line is no JSON object.",
    "bad_text": "The line is not UTF-8.",
    "columns": "The line has not the three columns of the format.",
    "truncated_file": "The file breaks off here; what comes after could not be read.",
    "missing_field": "A field that every record needs is missing.",
    "unknown_field": "It has a field that the format does not know.",
    "wrong_type": "A field is of another type than the format says.",
    "lengths_differ": "Not as many log-probabilities as tokens.",
    "tokens_do_not_join": "The tokens do not join to the text.",
    "nan_or_infinite": "A log-probability is not finite.",
    "probability_above_1": "A log-probability is above 0.",
}


class Kind(NamedTuple):
    """How a kind of position is shown: its title, what marks it beside colour, what it means."""

    title: str
    mark: str
    meaning: str


KINDS = {
    "soft": Kind(
        "soft",
        "",
        "It has the teacher's row: the likeliest next pieces with their probabilities.",
    ),
    "end": Kind(
        "end", "■", "The end of the sequence; the teacher's log-probabilities stop before."
    ),
    "no_token": Kind(
        "no token",
        "∅",
        "No teacher token lies here: the words were added to the chain, or the teacher wrote them "
        "otherwise.",
    ),
    "inside_token": Kind(
        "inside a token",
        "⊂",
        "The piece starts inside a teacher token, where the teacher had nothing to choose.",
    ),
    "several_tokens": Kind(
        "several tokens",
        "+",
        "Several teacher tokens lie on the piece, so that no single row of theirs fits.",
    ),
    "other_string": Kind(
        "other string",
        "≠",
        "The teacher's token is another string than the piece, or the piece is unknown.",
    ),
    "no_logprobs": Kind(
        "no log-probabilities", "", "The whole chain came without log-probabilities."
    ),
}
