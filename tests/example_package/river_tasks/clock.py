"""The answer kind `time`: a time of day, in the clock of 24 hours or of 12."""

import re

from cot_flax.text.answers import add_answer_kind

TIME = "time"

_CLOCK = re.compile(r"(?<![\d:])(\d{1,2}):([0-5]\d)(?![\d:])(?:\s*([ap])\.?m\b)?", re.IGNORECASE)


def find_times(text: str) -> list[str]:
    """All times in a text, in their normal form: `2:05 pm` is `14:05`. `25:00` is none."""
    return [time for time in map(_normal_form, _CLOCK.finditer(text)) if time]


def _normal_form(match: re.Match) -> str | None:
    hour, half = int(match[1]), (match[3] or "").lower()
    if half and 1 <= hour <= 12:
        hour = hour % 12 + 12 * (half == "p")
    elif half or hour > 23:
        return None
    return f"{hour:02}:{match[2]}"


add_answer_kind(TIME, find_times)
