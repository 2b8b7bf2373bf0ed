"""From prompts to texts and scores: what evaluation and teachers know of decoding.

Shape letters are those of students/student.py, and K the likeliest tokens of a position.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cot_flax.axes import MeshRules, all_gather
from cot_flax.generation.beam import beam_search
from cot_flax.generation.sampling import Sampling
from cot_flax.generation.slots import Dictation, Slots, Take, bucket, decode_all
from cot_flax.students.student import Params, Student
from cot_flax.text.calculator import EQUALS, result_behind
from cot_flax.text.tokenizers import Tokenizer

Text = str | Sequence[int]
"""A text, or its ids: those of a prompt are closed by the end id, others have none."""

_SHORTEST = 64


class Beams(NamedTuple):
    """Beam search; see `beam_search`."""

    beams: int
    length_penalty: float | None = None
    rule: str = "huggingface"


class Continuation(NamedTuple):
    """What a student wrote after a prompt: ids before the end or the first padding, their text.

    `cut_off` says that there was no end: the student would have gone on.
    """

    ids: list[int]
    text: str
    cut_off: bool


class Scores(NamedTuple):
    """Log-probabilities (nats) of a text's T tokens after its prompt, the end not among them.

    Attributes:
        ids_T: int32, the tokens.
        logprobs_T: float32.
        top_ids_TK: int32, the likeliest writable tokens, the likeliest first.
        top_logprobs_TK: float32; -inf where the vocabulary has fewer than K writable tokens.
    """

    ids_T: np.ndarray
    logprobs_T: np.ndarray
    top_ids_TK: np.ndarray
    top_logprobs_TK: np.ndarray


class Generator:
    """A student that writes and scores.

    Args:
        params: as they are trained, adapters and stacked layers included.
        tokenizer: of the vocabulary that the parameters belong to; an attribute, too.
        mesh: the devices that share the work; None is the mesh of the caller's context.
    """

    def __init__(
        self, student: Student, params: Params, tokenizer: Tokenizer, mesh: MeshRules | None = None
    ):
        self.tokenizer, self._mesh = tokenizer, mesh
        with self._active():
            self._student, self._params = student.for_decoding(params)

    def generate(
        self,
        prompts: Sequence[Text],
        *,
        max_tokens: int,
        sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
        samples: int = 1,
        beams: Beams | None = None,
        calculator: bool = False,
        slots: int = 32,
        keys=None,
        ended: Callable[[int, list[Continuation]], None] | None = None,
    ) -> list[list[Continuation]]:
        """Continues prompts.

        Args:
            max_tokens: of a continuation, its end included.
            samples: N continuations a prompt.
            beams: beam search, which draws nothing and gives one continuation, the best.
            calculator: behind an expression and `=` the right result is written for the student;
                not with beam search.
            slots: prompts decoded at once.
            keys: a random key for each prompt, whose samples depend on nothing else; None makes
                them of the prompts' places.
            ended: is told the place of every prompt that ends, and its continuations, at once.

        Returns:
            N for each prompt, in the order of the prompts.
        """
        ready = [self.ready(prompt) for prompt in prompts]
        found: dict[int, list[Continuation]] = {}

        def take(place: int, ids_NT: np.ndarray) -> None:
            found[place] = [self._continuation(ids_T) for ids_T in ids_NT.tolist()]
            if ended is not None:
                ended(place, found[place])

        with self._active():
            if beams is not None:
                self._search(ready, max_tokens, beams, slots, take)
            else:
                decode_all(
                    self._student,
                    self._params,
                    ready,
                    place_keys(0, len(ready)) if keys is None else keys,
                    slots=slots,
                    max_tokens=max_tokens,
                    samples=samples,
                    sampling=sampling,
                    dictation=self._calculator() if calculator else None,
                    ended=take,
                )
        return [found[place] for place in range(len(ready))]

    def score(self, prompts: Sequence[Text], texts: Sequence[Text], top_k: int) -> list[Scores]:
        """Teacher-forced log-probabilities of one text after each prompt."""
        if not len(texts):
            return []
        encode = self.tokenizer.encode
        targets = [encode(text) if isinstance(text, str) else list(text) for text in texts]
        inputs = [self.encode(prompt) for prompt in prompts]
        examples = [
            {"inputs": np.array(s, np.int32), "targets": np.array(t, np.int32)}
            for s, t in zip(inputs, targets, strict=True)
        ]
        lengths = {"inputs": _octave(inputs), "targets": _octave(targets)}
        batch = self._student.layout.to_batch(
            [[example] for example in examples],
            lengths,
            self._student.special_ids,
            top_k=0,
            packed=False,
        )
        with self._active():
            found = _teacher_forced(self._student, self._params, batch, self._writable(), k=top_k)
            found = jax.device_get(jax.tree.map(all_gather, found))
        learned = batch["decoder_loss_weights"] > 0
        return [
            Scores(example["targets"], *(array[n][learned[n]] for array in found))
            for n, example in enumerate(examples)
        ]

    def open_slots(self, *, slots: int, max_tokens: int) -> Slots:
        """Slots for prompts that arrive one by one, as `ready` makes them, of one sample each."""
        return Slots(self._student, self._params, slots=slots, max_tokens=max_tokens)

    def ready(self, prompt: Text) -> list[int]:
        """The ids of a prompt as slots take it."""
        return self._student.layout.prompt(self.encode(prompt), self._student.special_ids)

    def before_end(self, ids: Sequence[int]) -> list[int]:
        """The ids before the end or the first padding: fewer where the student has ended."""
        special_ids = self._student.special_ids
        stops = (i for i, id in enumerate(ids) if id in (special_ids.pad, special_ids.end))
        return list(ids[: next(stops, len(ids))])

    def encode(self, prompt: Text) -> list[int]:
        """The ids of a prompt, closed by the end id."""
        if isinstance(prompt, str):
            return [*self.tokenizer.encode(prompt), self._student.special_ids.end]
        return list(prompt)

    def _active(self):
        return nullcontext() if self._mesh is None else self._mesh.active()

    def _continuation(self, ids: list[int]) -> Continuation:
        written = self.before_end(ids)
        return Continuation(written, self.tokenizer.decode(written), len(written) == len(ids))

    def _calculator(self) -> Dictation:
        """The results that a calculator writes; nothing where the vocabulary cannot write one."""
        tokenizer = self.tokenizer

        def next_ids(ids: Sequence[int]) -> list[int]:
            text = tokenizer.decode(ids)
            result = result_behind(text)
            if result is None:
                return []
            sign, signed = tokenizer.encode("="), tokenizer.encode("=" + result)
            # Behind a sign a result begins otherwise than a text; some vocabularies join the two.
            ways = [signed[len(sign) :]] if signed[: len(sign)] == sign else []
            ways.append(tokenizer.encode(result))
            right = (way for way in ways if tokenizer.decode([*ids, *way]) == text + result)
            return next(right, [])

        asks_V = np.zeros(self._student.config.vocab_size, bool)
        for id in range(len(tokenizer.writable)):
            asks_V[id] = tokenizer.id_to_text(id).endswith(EQUALS)
        return Dictation(asks_V, next_ids)

    def _search(self, prompts, max_tokens: int, beams: Beams, slots: int, take: Take) -> None:
        """The best beam alone, int32 [1, T], of each prompt; those of like length go together."""
        pad = self._student.special_ids.pad
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for begin in range(0, len(order), slots):
            group = order[begin : begin + slots]
            # One shape is compiled: the last group repeats its last prompt.
            places = group + [group[-1]] * (slots - len(group))
            output_BNT, _ = beam_search(
                self._student,
                self._params,
                _padded([prompts[i] for i in places], pad),
                max_tokens=max_tokens,
                **beams._asdict(),
            )
            best_B1T = np.asarray(all_gather(output_BNT)[:, :1])
            for place, ids_1T in zip(group, best_B1T, strict=False):
                take(place, ids_1T)

    def _writable(self) -> np.ndarray:
        """bool [V]: the pieces that are a text by themselves; surplus rows are none."""
        writable = self.tokenizer.writable
        return np.array([*writable, *[False] * (self._student.config.vocab_size - len(writable))])


def place_keys(seed: int, prompts: int) -> jax.Array:
    """A random key for each of a list of prompts, made of the seed and its place: [prompts]."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    return fold(jax.random.key(seed), jnp.arange(prompts))


@partial(jax.jit, static_argnames=("student", "k"))
def _teacher_forced(student: Student, params, batch, writable_V, *, k: int):
    """Scores one of N rows after the other, so that [T, V] is the largest array.

    Returns:
        Log-probabilities of the targets, float32 [N, T], ids of the k likeliest writable tokens,
        int32 [N, T, K], and their log-probabilities, float32 [N, T, K].
    """

    def score(row):
        hidden_TD = student.hidden(params, {name: x[None] for name, x in row.items()})[0]
        logprobs_TV = jax.nn.log_softmax(hidden_TD @ student.head(params))
        targets_T = row["decoder_target_tokens"]
        chosen_T = jnp.take_along_axis(logprobs_TV, targets_T[:, None], axis=1)[:, 0]
        top_TK, ids_TK = jax.lax.top_k(jnp.where(writable_V, logprobs_TV, -jnp.inf), k)
        return chosen_T, ids_TK, top_TK

    return jax.lax.map(score, batch)


def _padded(prompts: Sequence[Sequence[int]], pad: int) -> jax.Array:
    tokens_BS = np.full((len(prompts), bucket(max(map(len, prompts)))), pad, np.int32)
    for row, ids in zip(tokens_BS, prompts, strict=True):
        row[: len(ids)] = ids
    return jnp.asarray(tokens_BS)


def _octave(rows: Sequence[Sequence[int]]) -> int:
    """A power of two that holds the longest row, so that few shapes are compiled."""
    longest = max(map(len, rows))
    return max(_SHORTEST, 1 << max(longest - 1, 0).bit_length())
