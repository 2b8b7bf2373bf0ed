"""A checkpoint of our own as the teacher, decoded on this machine's devices."""

import asyncio
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.generation.decoding import decode
from cot_flax.students.student import Student
from cot_flax.teacher.local import cut_at_stop, refuse_settings, seed_of
from cot_flax.teacher.requests import Completion, Reply, Request, RequestFailed, Unscorable
from cot_flax.text.tokenizers import Tokenizer, open_tokenizer
from cot_flax.training.state import abstract_variables
from cot_flax.weights import tokenizer_files
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import load

_SMALLEST_BUCKET = 64


class JaxTeacher:
    """Answers requests with an encoder-decoder of cot-flax.

    Tokens are SentencePiece pieces with their spaces; a text does not begin with one, so neither
    does its first token. The end of the text is not a token. Log-probabilities are those of the
    model itself, whatever the temperature of the draw. Equal requests draw equal samples.

    Args:
        checkpoint: a checkpoint of ours, of Hugging Face or its hub, or of T5X.
        vocabulary: the SentencePiece model file that the checkpoint was trained with; None takes
            the one that lies beside it.
        max_input_tokens: a longer prompt is refused.

    Raises:
        UserError: no checkpoint, no vocabulary, or not the checkpoint's vocabulary.
    """

    def __init__(
        self,
        checkpoint: str,
        vocabulary: str | os.PathLike | None = None,
        *,
        max_input_tokens: int = 1024,
    ):
        source = open_source(checkpoint)
        self.name = source.place
        self._tokenizer = open_tokenizer(
            tokenizer_files.find(source, vocabulary), source.vocabulary
        )
        self._max_input_tokens = max_input_tokens
        student = source.student
        params = load(source, abstract_variables(student)["params"])
        self._student, self._params = student.for_decoding(params)
        self._writable_V = _writable(self._tokenizer, student.config.vocab_size)
        self._worker = ThreadPoolExecutor(max_workers=1)  # one device, one request at a time

    async def complete(self, request: Request) -> Reply:
        """Draws the continuations; stop strings are cut off afterwards.

        Raises:
            RequestFailed: the prompt is too long.
            UserError: a chat or a penalty.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._worker, self._complete, request
        )

    async def score(self, prompt: str, text: str, top_logprobs: int) -> Logprobs:
        """Scores `text` in the vocabulary's own segmentation; a draw may be segmented otherwise.

        Raises:
            Unscorable: the prompt is too long, or the text has no words.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._worker, self._score, prompt, text, top_logprobs
        )

    async def close(self) -> None:
        """Ends the worker thread."""
        self._worker.shutdown(wait=False)

    def _complete(self, request: Request) -> Reply:
        if request.is_chat:
            raise UserError(
                "the messages of a chat",
                "a prompt that is one text: an encoder-decoder has no chat",
                "choose a prompt without chat, or another teacher",
            )
        refuse_settings(request, {"presence_penalty": 0.0, "frequency_penalty": 0.0})
        prompt_ids = self._encode(request.prompt)
        inputs_S = _padded(prompt_ids)
        drawn_1NT = decode(
            self._student,
            self._params,
            inputs_S[None],
            max_tokens=request.max_tokens,
            samples=request.n,
            temperature=request.temperature,
            top_p=request.top_p,
            rng=jax.random.key(seed_of(request))[None],
        )
        drawn_NT = np.asarray(drawn_1NT[0])
        completions = self._completions(request, inputs_S, drawn_NT)
        return Reply(completions, len(prompt_ids), int(np.count_nonzero(drawn_NT > 1)))

    def _completions(self, request, inputs_S, drawn_NT) -> list[Completion]:
        unscored = [None] * request.n
        k = request.top_logprobs
        scores = unscored if k is None else self._scores(inputs_S, drawn_NT, k)
        completions = []
        for ids_T, score in zip(drawn_NT.tolist(), scores, strict=True):
            ids = list(itertools.takewhile(lambda i: i > 1, ids_T))
            tokens = self._tokenizer.surfaces(ids)
            logprobs = score and self._logprobs(tokens, *score)
            reason = "stop" if len(ids) < request.max_tokens else "length"
            completion = Completion("".join(tokens), logprobs, reason)
            completions.append(cut_at_stop(completion, request.stop))
        return completions

    def _score(self, prompt: str, text: str, top_logprobs: int) -> Logprobs:
        pieces = self._tokenizer.pieces(text)
        if not pieces.ids:
            raise Unscorable("no_words")
        tokens = pieces.cut(text)
        # White space at the ends, which the vocabulary does not write, stays with its neighbours.
        before, _, after = text.partition("".join(tokens))
        tokens[0] = before + tokens[0]
        tokens[-1] += after
        try:
            inputs_S = _padded(self._encode(prompt))
        except RequestFailed:
            raise Unscorable("prompt_too_long") from None
        targets_1T = _padded(pieces.ids)[None]
        return self._logprobs(tokens, *self._scores(inputs_S, targets_1T, top_logprobs)[0])

    def _encode(self, prompt: str) -> list[int]:
        ids = [*self._tokenizer.encode(prompt), self._tokenizer.special_ids.end]
        if len(ids) > self._max_input_tokens:
            raise RequestFailed(
                f"a prompt of {len(ids)} tokens",
                f"at most {self._max_input_tokens}",
                "shorten the prompt, or raise max_input_tokens",
            )
        return ids

    def _scores(self, inputs_S, targets_NT, k: int) -> list[tuple[np.ndarray, ...]]:
        """For each of N: log-probabilities [T], and those [T, K] and ids [T, K] of the top k."""
        scores = _teacher_forced(
            self._student, self._params, inputs_S, targets_NT, self._writable_V, k=k
        )
        return list(zip(*jax.device_get(scores), strict=True))

    def _logprobs(self, tokens: Sequence[str], chosen_T, top_TK, ids_TK) -> Logprobs:
        top, text = [], ""
        for token, values_K, ids_K in zip(tokens, top_TK.tolist(), ids_TK.tolist(), strict=False):
            top.append(self._top(ids_K, values_K, at_start=not text))
            text += token
        return Logprobs(tuple(tokens), tuple(chosen_T[: len(tokens)].tolist()), tuple(top))

    def _top(self, ids: Sequence[int], logprobs: Sequence[float], at_start: bool):
        """{token: log-probability}; of two pieces of one string the likelier stays."""
        tokens = [self._tokenizer.id_to_text(i) for i in ids]
        if at_start:
            tokens = [token.lstrip(" ") for token in tokens]
        likeliest_last = reversed(list(zip(tokens, logprobs, strict=True)))
        return dict(sorted(dict(likeliest_last).items(), key=lambda entry: -entry[1]))


@partial(jax.jit, static_argnames=("student", "k"))
def _teacher_forced(student: Student, params, inputs_S, targets_NT, writable_V, *, k: int):
    """Teacher-forced log-probabilities, one of N after the other: [T, V] is the largest array.

    Returns:
        Those of the targets, float32 [N, T], of the k likeliest writable tokens, float32
        [N, T, K], and the ids of these, int32 [N, T, K].
    """

    def score(targets_T):
        previous_T = jnp.roll(targets_T, 1).at[0].set(0)
        rows = (row[None] for row in (inputs_S, previous_T, targets_T))
        logprobs_TV = jax.nn.log_softmax(student.module.apply({"params": params}, *rows)[0])
        chosen_T = jnp.take_along_axis(logprobs_TV, targets_T[:, None], axis=1)[:, 0]
        return chosen_T, *jax.lax.top_k(jnp.where(writable_V, logprobs_TV, -jnp.inf), k)

    return jax.lax.map(score, targets_NT)


def _padded(ids: Sequence[int]) -> np.ndarray:
    """int32 [S]; S is a power of two, so that few shapes are compiled."""
    length = max(_SMALLEST_BUCKET, 1 << (len(ids) - 1).bit_length())
    return np.array([*ids, *[0] * (length - len(ids))], np.int32)


def _writable(tokenizer: Tokenizer, size: int) -> np.ndarray:
    """bool [V]: the pieces that are a text by themselves."""
    writable = tokenizer.writable
    return np.array([*writable, *[False] * (size - len(writable))])
