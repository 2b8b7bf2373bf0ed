"""What is known of a server and its model: found by a probe, kept beside the journal, used by runs.

A server may refuse or pass over a parameter, lack log-probabilities or give those of another place,
draw every chain alike, or answer as another model. What makes a run worthless stops it before it is
paid for; the rest is said in a line each.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cot_flax.errors import UserError
from cot_flax.files import make_folder, write_whole
from cot_flax.teacher.requests import TEACHERS_OWN

NOISE = 0.02
"""Nats a token: arithmetic in 16 bits, batched in another way, moves a value by less."""
LIKELY_TOP = 0.9
"""Share of the tokens that are the likeliest where they were drawn as the likeliest."""
# Findings that come of one question, of which the first is None where it was not answered.
_TOGETHER = (
    ("other_api",),
    ("n",),
    ("draws", "chains", "different"),
    ("shape", "problem", "own_is_top", "top_k"),
    ("characters", "foreign_problem"),
    ("lost",),
    ("scoring", "scoring_problem", "repeated", "agreement", "scored_is_top", "tokens"),
    ("choice",),
)
_OFF = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass
class Habits:
    """What is known of a server, from a probe or from what it refused in this run.

    Attributes:
        most_n: the most chains of one request; None is unknown.
        most_greedy_n: the same at temperature 0.
        limit_name: of the most tokens in the chat API; "" is unknown.
        sends_top_p: also where it is off.
        scoring: one of `client.SCORING`; "" is unknown.
    """

    most_n: int | None = None
    most_greedy_n: int | None = None
    limit_name: str = ""
    sends_top_p: bool = True
    scoring: str = ""


@dataclass(frozen=True)
class Wanted:
    """What a run will ask for, and a probe is to look at.

    Attributes:
        chat: by the chat API.
        top_logprobs: as in `Request`.
        draws: chains are drawn, at a temperature above 0.
        samples: chains a question.
        stops: stop strings are sent.
        seed: one is sent.
        scores: given texts are scored.
        everything: whatever the server can do.
    """

    chat: bool = False
    top_logprobs: int | None = None
    draws: bool = False
    samples: int = 1
    stops: bool = False
    seed: bool = False
    scores: bool = False
    everything: bool = False


@dataclass
class Findings:
    """What was found; None, or a name in `unseen`, is not known.

    Attributes:
        server: its address.
        asked_for: the model's name in the requests.
        model: its own name.
        listed: the models that the server names.
        fingerprint: of the server, as it gives it.
        chat: the API that was asked.
        other_api: whether it has the other one, too.
        n: the most chains that one request was answered with.
        top_k: the most alternatives a position, of 20 that were asked for.
        shape: where log-probabilities lie; "" without any.
        problem: why there are none that fit the text.
        own_is_top: share of the tokens of a greedy text that are their own top entry.
        characters: how parts of characters are given: "whole", "bytes", "empty", "U+FFFD".
        foreign_problem: why a text of other scripts has no log-probabilities.
        lost: characters that the tokenizer does not know.
        chains: drawn at temperature 0.7.
        different: of them.
        draws: whether any differ, at a higher temperature too.
        scoring: how given texts are scored, one of `client.SCORING`; "" where they are not.
        scoring_problem: why not.
        repeated: nats between two scorings of a text, in sum.
        agreement: nats between its generated and its scored log-probabilities, in sum.
        scored_is_top: as `own_is_top`, of the scored ones.
        tokens: of that text.
        thought: where thinking lies; "" where there was none.
        honoured: parameters that did what they should.
        ignored: parameters that were passed over.
        refused: parameters that are HTTP 400.
        choice: by which parameter an answer is one of a list; "" by none.
        unseen: questions that were not answered in time.
        habits: for the client.
        requests: sent.
        seconds: from the first to the last.
        prompt_tokens: paid, as the server counts.
        completion_tokens: paid, as the server counts.
    """

    server: str
    asked_for: str
    model: str = ""
    listed: list[str] = field(default_factory=list)
    fingerprint: str = ""
    chat: bool = False
    other_api: bool | None = None
    n: int | None = None
    top_k: int | None = None
    shape: str | None = None
    problem: str = ""
    own_is_top: float | None = None
    characters: str | None = None
    foreign_problem: str = ""
    lost: str | None = None
    chains: int = 0
    different: int = 0
    draws: bool | None = None
    scoring: str | None = None
    scoring_problem: str = ""
    repeated: float | None = None
    agreement: float | None = None
    scored_is_top: float | None = None
    tokens: int = 0
    thought: str | None = None
    honoured: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    choice: str | None = None
    unseen: list[str] = field(default_factory=list)
    habits: dict[str, Any] = field(default_factory=dict)
    requests: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def known_habits(self) -> Habits:
        """What the client may rely on."""
        return Habits(**self.habits)

    def check(self, wanted: Wanted) -> None:
        """Raises UserError where a run would pay for answers that it cannot use."""
        if wanted.top_logprobs and self.shape == "":
            raise UserError(
                f"no log-probabilities from {self.server} ({self.problem})",
                "those of every token, as asked for",
                "ask a server and model that give them, or for none (--top-logprobs 0)",
            )
        if wanted.top_logprobs and not _is_top(self.own_is_top):
            raise _of_another_place("the greedy text of", self.server, self.own_is_top)
        if wanted.draws and wanted.samples > 1 and self.draws is False:
            raise UserError(
                f"{self.chains} equal chains at temperature 0.7, and at 1.5, from {self.server}",
                "chains that differ",
                "serve the model so that it draws, or ask for one chain (--samples 1)",
            )
        if wanted.scores and self.scoring == "":
            raise UserError(
                f"no log-probabilities of a given text from {self.server} ({self.scoring_problem})",
                "those of the text",
                "serve the model with vLLM, or score with a checkpoint",
            )
        if wanted.scores and not _is_top(self.scored_is_top):
            raise _of_another_place("a scored greedy text of", self.server, self.scored_is_top)

    def warnings(self, wanted: Wanted) -> Iterator[str]:
        """What a user should know before such a run, a line each."""
        names = [name.casefold() for name in (self.asked_for, self.model)]
        if all(names) and not (names[0] in names[1] or names[1] in names[0]):
            yield f"asked for model {self.asked_for!r}, answered by {self.model!r}"
        if self.shape == "" and not wanted.top_logprobs:
            yield f"no log-probabilities ({self.problem})"
        elif not _is_top(self.own_is_top):
            yield (
                f"log-probabilities of another place: {self.own_is_top:.0%} of a greedy text's "
                "tokens are the likeliest ones"
            )
        if self.chains and self.different == 1:
            more = "they differ at 1.5" if self.draws else "and at 1.5: it does not draw"
            yield f"{self.chains} equal chains at temperature 0.7 ({more})"
        if self.n is not None and wanted.samples > self.n:
            yield f"{wanted.samples} chains take {-(-wanted.samples // self.n)} requests a question"
        if self.top_k is not None and (wanted.top_logprobs or 0) > self.top_k > 0:
            yield f"{self.top_k} alternatives a position, not {wanted.top_logprobs}"
        if self.ignored:
            yield f"passed over without a word: {', '.join(self.ignored)}"
        if self.scoring == "":
            yield f"given texts are not scored ({self.scoring_problem})"
        elif not _is_top(self.scored_is_top):
            yield (
                f"scores of another place: {self.scored_is_top:.0%} of a greedy text's tokens are "
                "the likeliest ones"
            )
        for nats, what in (
            (self.repeated, "two scorings of one text"),
            (self.agreement, "generated and scored log-probabilities of one text"),
        ):
            if nats is not None and nats > NOISE * self.tokens:
                yield f"{what} differ by {nats:.3g} nats over {self.tokens} tokens"
        if self.foreign_problem:
            yield f"texts of other scripts lose their log-probabilities ({self.foreign_problem})"
        if self.lost:
            yield f"characters that its tokenizer does not know: {' '.join(self.lost)}"
        if self.thought:
            yield f"it thinks before it answers, apart in `{self.thought}`"

    def answers(self, wanted: Wanted) -> bool:
        """Whether nothing is left to find out for such a run.

        A server that was of no use for it may have been mended since.
        """
        try:
            self.check(wanted)
        except UserError:
            return False
        return (
            not wanted.everything
            and self.chat == wanted.chat
            and not (wanted.top_logprobs and self.shape is None)
            and not (wanted.draws and self.draws is None)
            and not (wanted.scores and self.scoring is None)
        )

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What is to be sent though it is off, for the server may have another default.

        Args:
            given: fields of `Request`; None is the server's own.
        """
        own = [name for name in TEACHERS_OWN if given.get(name) is None]
        return {name: _OFF[name] for name in own if name in self.honoured}


def _is_top(share: float | None) -> bool:
    return share is None or share >= LIKELY_TOP


def _of_another_place(what: str, server: str, share: float) -> UserError:
    return UserError(
        f"log-probabilities of another place: {share:.0%} of the tokens of {what} {server} are "
        "the likeliest ones",
        f"at least {LIKELY_TOP:.0%}: they were chosen as such",
        "serve the model with vLLM, or ask for no log-probabilities (--top-logprobs 0)",
    )


def report(found: Findings) -> str:
    """What `cot-flax teach probe` prints."""

    def said(value: Any, text: str) -> str:
        return "not found out" if value is None else text

    def nats(value: float | None) -> str:
        return said(value, f"{value or 0.0:.3g} nats apart over {found.tokens} tokens")

    api, other = ("chat", "completions") if found.chat else ("completions", "chat")
    apis = {None: api, True: f"{api}; {other} too", False: f"{api} alone"}[found.other_api]
    shares = [found.own_is_top, found.scored_is_top]
    likeliest = [f"{share:.0%}" for share in shares if share is not None]
    logprobs = f"{found.top_k} alternatives in `{found.shape}`" if found.shape else "none"
    rows = {
        "server": found.server,
        "model": f"{found.model or 'unnamed'} (asked for {found.asked_for})"
        + (f", {found.fingerprint}" if found.fingerprint else ""),
        "API": apis,
        "chains a request": said(found.n, f"up to {found.n}"),
        "chains at 0.7": said(found.draws, f"{found.different} of {found.chains} differ"),
        "log-probabilities": said(found.shape, logprobs),
        "parts of characters": said(found.characters, f"{found.characters}"),
        "a given text": said(
            found.scoring, f"scored by {found.scoring}" * bool(found.scoring) or "not scored"
        ),
        "scored twice": nats(found.repeated),
        "generated and scored": nats(found.agreement),
        "greedy is likeliest": said(likeliest or None, ", ".join(likeliest)),
        "thinking": said(found.thought, f"in `{found.thought}`" if found.thought else "none seen"),
        "choice of a list": said(found.choice, f"by {found.choice}" if found.choice else "no"),
        "honoured": ", ".join(found.honoured) or "none known",
        "passed over": ", ".join(found.ignored) or "none known",
        "refused": ", ".join(found.refused) or "none",
    }
    width = max(map(len, rows))
    lines = [f"{name:{width}}  {text}" for name, text in rows.items()]
    lines += [f"WARNING: {text}" for text in found.warnings(Wanted())]
    if found.unseen:
        lines.append(f"not found out: {', '.join(found.unseen)}")
    return "\n".join([*lines, spent(found)])


def spent(found: Findings) -> str:
    """What a probe cost, in a line."""
    return (
        f"probe: {found.requests} requests in {found.seconds:.1f} s, "
        f"{found.prompt_tokens:,} prompt tokens, {found.completion_tokens:,} written"
    )


def path_beside(journal: str | os.PathLike) -> Path:
    """Where findings are kept."""
    return Path(f"{os.fspath(journal)}.probe.json")


def server_of(base_url: str | None) -> str:
    """The address of a server as findings have it."""
    parts = urlsplit(base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1")
    return f"{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def read_kept(path: Path, server: str, model: str, chat: bool) -> Findings | None:
    """What was found before of a server and model, by one API; None where nothing was."""
    try:
        record = json.loads(path.read_bytes())[_name(server, model, chat)]
        return Findings(**record)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # It is found out anew.


def keep(path: Path, found: Findings) -> None:
    """Adds findings to a file; what they leave open is taken from those of the same server."""
    old = read_kept(path, found.server, found.asked_for, found.chat)
    if old and (old.model, old.fingerprint) == (found.model, found.fingerprint):
        _complete(found, old)
    try:
        records = json.loads(path.read_bytes())
    except (OSError, ValueError):
        records = {}
    records[_name(found.server, found.asked_for, found.chat)] = asdict(found)
    make_folder(path.parent)
    write_whole(path, json.dumps(records, indent=1, ensure_ascii=False))


def _complete(found: Findings, old: Findings) -> None:
    for group in _TOGETHER:
        if getattr(found, group[0]) is None:
            for name in group:
                setattr(found, name, getattr(old, name))
    known = {*found.honoured, *found.ignored, *found.refused}
    for group in ("honoured", "ignored", "refused"):
        getattr(found, group).extend(name for name in getattr(old, group) if name not in known)
    unknown = asdict(Habits())
    learned = {k: v for k, v in found.habits.items() if v != unknown[k]}
    found.habits = {**old.habits, **learned}


def _name(server: str, model: str, chat: bool) -> str:
    return f"{model} at {server}, {'chat' if chat else 'completions'}"
