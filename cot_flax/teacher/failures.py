"""What can go wrong with one request, and what it means for the others."""

from cot_flax.errors import UserError

_NOT_NOW = (408, 409, 429)  # and all of 5xx


class RequestFailed(UserError):
    """This request has no answer; others may have one. A plain UserError concerns them all."""


class NotNow(RequestFailed):
    """The same request may succeed later.

    Attributes:
        retry_after: seconds that the server asks to wait, or None.
    """

    def __init__(self, got: str, retry_after: float | None = None):
        super().__init__(got, "an answer from the server", "run the same command again later")
        self.retry_after = retry_after


class Unscorable(RequestFailed):
    """The teacher cannot say how likely this text is.

    Attributes:
        reason: a name to count by.
    """

    def __init__(self, reason: str):
        super().__init__(f"no log-probabilities: {reason}", "those of the text", "leave it out")
        self.reason = reason


def of_status(
    status: int, message: str, *, place: str, key_variable: str, retry_after: float | None
) -> UserError:
    """The exception for an HTTP status that is no success.

    Args:
        message: of the server; it is shown, but not where it may quote the key (401, 403).
        place: the server's address.
        key_variable: the environment variable of the key.
        retry_after: seconds that the server asks to wait, or None.
    """
    got = f"HTTP {status} from {place}"
    if status in (401, 403):
        remedy = f"put such a key in the environment variable {key_variable}"
        return UserError(got, "a key that may use this model", remedy)
    got = f"{got}: {message}"
    if status == 404:
        remedy = "check the model's name and the base URL, which usually ends in /v1"
        return UserError(got, "a server that has this model and this path", remedy)
    if status in _NOT_NOW or status >= 500:
        return NotNow(got, retry_after)
    return RequestFailed(got, "a request that the server accepts", "change what it complains of")
