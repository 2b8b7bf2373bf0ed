"""Where cot-flax meets other models: teachers that run on this machine, in JAX or PyTorch."""

from collections.abc import Mapping, Sequence

from cot_flax.errors import UserError
from cot_flax.teacher.samples import Logprobs
from cot_flax.teacher.sampling.requests import Completion, Request


def refuse_settings(request: Request, neutral: Mapping[str, float]) -> None:
    """Raises UserError where a setting of the request is not the value that switches it off."""
    for name, off in neutral.items():
        if (value := getattr(request, name)) != off:
            raise UserError(
                f"{name} = {value}", f"{name} = {off} for this local teacher", "leave it out"
            )


def seed_of(request: Request) -> int:
    """A seed below 2^63 that depends on the whole request: a request repeated draws the same."""
    return int(request.key(""), 16) >> 65


def cut_at_stop(completion: Completion, stop: Sequence[str]) -> Completion:
    """Returns the completion up to its first stop string; then it ended by "stop".

    A token that straddles the cut keeps its log-probability beside what is left of its string.
    """
    places = [completion.text.find(string) for string in stop if string in completion.text]
    if not places:
        return completion
    text = completion.text[: min(places)]
    return Completion(text, completion.logprobs and _cut(completion.logprobs, len(text)), "stop")


def _cut(logprobs: Logprobs, characters: int) -> Logprobs:
    tokens: list[str] = []
    for token in logprobs.tokens:
        if characters <= 0:
            break
        tokens.append(token[:characters])
        characters -= len(token)
    kept = slice(len(tokens))
    return Logprobs(tuple(tokens), logprobs.token_logprobs[kept], logprobs.top_logprobs[kept])
