"""Where cot-flax meets other models: teachers that run on this machine, in JAX or PyTorch."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cot_flax.errors import UserError
from cot_flax.teacher.clipping import clip
from cot_flax.teacher.requests import TEACHERS_OWN, Completion, Request


def refuse_settings(request: Request, neutral: Mapping[str, float]) -> None:
    """Raises UserError where a setting of the request is not the value that switches it off.

    Settings of a server are refused, too.
    """
    for name, off in {**neutral, **dict.fromkeys((*TEACHERS_OWN, "extra_body"))}.items():
        if (value := getattr(request, name)) != off:
            raise UserError(
                f"{name} = {value}", f"{name} = {off} for this local teacher", "leave it out"
            )


def seed_of(request: Request) -> int:
    """A seed below 2^63 of content and `done`: a request repeated draws the same, more others."""
    content = f"{request.key('')} {request.done}"
    return int(hashlib.sha256(content.encode()).hexdigest()[:16], 16) >> 1


def cut_at_stop(completion: Completion, stop: Sequence[str]) -> Completion:
    """Returns the completion up to its first stop string; then it ended by "stop"."""
    places = [completion.text.find(string) for string in stop if string in completion.text]
    if not places:
        return completion
    return replace(clip(completion, 0, min(places)), finish_reason="stop")
