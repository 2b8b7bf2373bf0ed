"""A checkpoint of our own as the teacher, decoded on this machine's devices."""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.generation.generator import Generator, Scores
from cot_flax.generation.sampling import Sampling
from cot_flax.teacher.local import cut_at_stop, refuse_settings, seed_of
from cot_flax.teacher.requests import Completion, Refused, Reply, Request, Unscorable
from cot_flax.text.tokenizers import open_tokenizer
from cot_flax.training.state import abstract_variables
from cot_flax.weights import tokenizer_files
from cot_flax.weights.opening import open_source
from cot_flax.weights.source import load


class JaxTeacher:
    """Answers requests with a student of cot-flax.

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
        self._generator = Generator(student, params, self._tokenizer)
        self._worker = ThreadPoolExecutor(max_workers=1)  # one device, one request at a time

    async def complete(self, request: Request) -> Reply:
        """Draws the continuations; stop strings are cut off afterwards.

        Raises:
            Refused: the prompt is too long.
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
        (drawn,) = self._generator.generate(
            [prompt_ids],
            max_tokens=request.max_tokens,
            sampling=Sampling(request.temperature, top_p=request.top_p),
            samples=request.n,
            slots=1,
            keys=jax.random.key(seed_of(request))[None],
        )
        drawn_ids = [continuation.ids for continuation in drawn]
        completions = self._completions(request, prompt_ids, drawn_ids)
        return Reply(completions, len(prompt_ids), sum(map(len, drawn_ids)))

    def _completions(self, request, prompt_ids, drawn_ids) -> list[Completion]:
        scores: Sequence[Scores | None] = [None] * request.n
        if request.top_logprobs is not None:
            prompts = [prompt_ids] * request.n
            scores = self._generator.score(prompts, drawn_ids, request.top_logprobs)
        completions = []
        for ids, score in zip(drawn_ids, scores, strict=True):
            tokens = self._tokenizer.surfaces(ids)
            logprobs = score and self._logprobs(tokens, score)
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
            prompt_ids = self._encode(prompt)
        except Refused:
            raise Unscorable("prompt_too_long") from None
        (scores,) = self._generator.score([prompt_ids], [pieces.ids], top_logprobs)
        return self._logprobs(tokens, scores)

    def _encode(self, prompt: str) -> list[int]:
        ids = self._generator.encode(prompt)
        if len(ids) > self._max_input_tokens:
            raise Refused(
                "prompt_too_long",
                f"a prompt of {len(ids)} tokens",
                f"at most {self._max_input_tokens}",
                "shorten the prompt, or raise max_input_tokens",
            )
        return ids

    def _logprobs(self, tokens: Sequence[str], scores: Scores) -> Logprobs:
        top, text = [], ""
        rows = zip(scores.top_ids_TK.tolist(), scores.top_logprobs_TK.tolist(), strict=True)
        for token, (ids, logprobs) in zip(tokens, rows, strict=True):
            top.append(self._top(ids, logprobs, at_start=not text))
            text += token
        return Logprobs(tuple(tokens), tuple(scores.logprobs_T.tolist()), tuple(top))

    def _top(self, ids: Sequence[int], logprobs: Sequence[float], at_start: bool):
        """{token: log-probability}; of two pieces of one string the likelier stays."""
        tokens = [self._tokenizer.id_to_text(i) for i in ids]
        if at_start:
            tokens = [token.lstrip(" ") for token in tokens]
        likeliest_last = reversed(list(zip(tokens, logprobs, strict=True)))
        return dict(sorted(dict(likeliest_last).items(), key=lambda entry: -entry[1]))
