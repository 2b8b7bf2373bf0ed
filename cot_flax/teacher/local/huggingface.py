"""A causal language model of Hugging Face as the teacher, run by PyTorch on this machine."""

import asyncio
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

from cot_flax import hub
from cot_flax.chains.samples import Logprobs
from cot_flax.errors import UserError
from cot_flax.teacher.local import cut_at_stop, refuse_settings, seed_of
from cot_flax.teacher.requests import (
    Completion,
    Messages,
    Refused,
    Reply,
    Request,
    Unscorable,
)
from cot_flax.weights.opening import no_folder

_BROKEN = "\ufffd"  # what a decoder writes for the bytes of an incomplete character


class HuggingFaceTeacher:
    """Answers requests with an `AutoModelForCausalLM`.

    Tokens are the model's, except that the tokens of one character are merged: their
    log-probabilities are summed. Special tokens, so also the end of the text, are no tokens of it.
    Log-probabilities are those of the model itself, whatever the temperature and top_p of the
    draw. On the same machine and libraries equal requests draw equal samples.

    Args:
        model: a folder, or a name on the Hugging Face hub; a folder is never looked for there.
        gguf_file: the name of a GGUF file in it, which is dequantised.
        device: PyTorch's name of one; by default the first GPU, or else the CPU.
        dtype: of the parameters, such as "bfloat16"; "auto" is the checkpoint's.

    Raises:
        UserError: PyTorch or transformers is missing, or the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        *,
        gguf_file: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
    ):
        if not Path(model).expanduser().is_dir() and not hub.is_name(str(model)):
            raise no_folder(str(model))
        try:
            import torch
            import transformers
        except ImportError as error:
            raise _not_installed(error) from error
        self._torch, self._transformers = torch, transformers
        self.name = f"{model}/{gguf_file}" if gguf_file else str(model)
        model = os.path.expanduser(model)
        files = {"gguf_file": gguf_file, "local_files_only": Path(model).is_dir()}
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(model, **files)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **files)
        except ImportError as error:
            raise _not_installed(error) from error
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.name}, which does not load ({str(error).strip().splitlines()[0]})",
                "a folder with a causal language model, or its name on the Hugging Face hub",
                "check the name, or download the model's files and give their folder",
            ) from error
        self._model = loaded.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._ends = _ends(loaded, self._tokenizer)
        self._special = sorted({*self._tokenizer.all_special_ids, *self._ends})
        self._before = self._tokenizer("a", add_special_tokens=False).input_ids
        self._text_of_one = cache(lambda i: self._text([i]))
        # The checkpoint's own sampling settings would leak into every draw.
        self._model.generation_config = transformers.GenerationConfig(
            eos_token_id=self._ends, pad_token_id=self._ends[0] if self._ends else 0
        )
        self._worker = ThreadPoolExecutor(max_workers=1)  # one device, one request at a time

    async def complete(self, request: Request) -> Reply:
        """Draws the continuations.

        Raises:
            Refused: the prompt leaves no room for max_tokens.
            UserError: a penalty, a chat where the tokenizer has no template for it, or an empty
                prompt.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._worker, self._complete, request
        )

    async def score(self, prompt: str, text: str, top_logprobs: int) -> Logprobs:
        """Scores `text`, tokenized apart from the prompt; a draw may be tokenized otherwise.

        Raises:
            Unscorable: prompt and text are too long, or the tokenizer changes the text.
            UserError: the prompt is empty.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._worker, self._score, prompt, text, top_logprobs
        )

    async def close(self) -> None:
        """Ends the worker thread."""
        self._worker.shutdown(wait=False)

    def _complete(self, request: Request) -> Reply:
        refuse_settings(request, {"presence_penalty": 0.0, "frequency_penalty": 0.0})
        prompt_ids = self._prompt_ids(request.prompt)
        self._check_length(len(prompt_ids) + request.max_tokens)
        drawn = self._draw(request, prompt_ids)
        completions = [self._completion(request, prompt_ids, ids) for ids in drawn]
        return Reply(completions, len(prompt_ids), sum(map(len, drawn)))

    def _score(self, prompt: str, text: str, top_logprobs: int) -> Logprobs:
        prompt_ids = self._prompt_ids(prompt)
        ids = self._tokenizer(text, add_special_tokens=False).input_ids
        if self._text(ids) != text:
            raise Unscorable("text_changed_by_tokenizer")
        try:
            self._check_length(len(prompt_ids) + len(ids))
        except Refused:
            raise Unscorable("too_long") from None
        return self._logprobs(prompt_ids, ids, top_logprobs)

    def _prompt_ids(self, prompt: str | Messages) -> list[int]:
        is_chat = not isinstance(prompt, str)
        if is_chat and not self._tokenizer.chat_template:
            raise UserError(
                f"a chat for {self.name}, whose tokenizer has no chat template",
                "a prompt that is one text",
                "choose a prompt without chat, or a model tuned for chat",
            )
        if is_chat:
            messages = [dict(message) for message in prompt]
            prompt = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        # The template has written the special tokens of a chat.
        ids = self._tokenizer(prompt, add_special_tokens=not is_chat).input_ids
        if not ids:
            raise UserError("an empty prompt", "at least one token", "write something")
        return ids

    def _check_length(self, tokens: int) -> None:
        most = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if most is not None and tokens > most:
            raise Refused(
                "prompt_too_long",
                f"{tokens} tokens of prompt and continuation",
                f"at most the {most} of {self.name}",
                "shorten the prompt, or lower max_tokens",
            )

    def _draw(self, request: Request, prompt_ids: Sequence[int]) -> list[list[int]]:
        """The ids of n continuations, without their ends; a greedy one is drawn once."""
        torch, rows = self._torch, request.n if request.temperature > 0 else 1
        prompt_1S = torch.tensor([prompt_ids], device=self._model.device)

        def has_stopped(ids_NS, scores, **_):
            texts = map(self._text, ids_NS[:, len(prompt_ids) :].tolist())
            stopped = [any(string in text for string in request.stop) for text in texts]
            return torch.tensor(stopped, device=ids_NS.device)

        # By itself it asks for every CUDA device, and fails where a build for GPUs has no driver.
        device = self._model.device
        forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
        with forked, torch.inference_mode():
            torch.manual_seed(seed_of(request))
            ids_NS = self._model.generate(
                prompt_1S,
                attention_mask=torch.ones_like(prompt_1S),
                generation_config=self._transformers.GenerationConfig(
                    max_new_tokens=request.max_tokens, num_return_sequences=rows, **_draws(request)
                ),
                stopping_criteria=[has_stopped] if request.stop else None,
            )
        drawn_NT = ids_NS[:, len(prompt_ids) :].tolist()
        is_text = lambda i: i not in self._ends  # noqa: E731
        return [list(itertools.takewhile(is_text, ids)) for ids in drawn_NT] * (request.n // rows)

    def _completion(
        self, request: Request, prompt_ids: Sequence[int], ids: Sequence[int]
    ) -> Completion:
        k = request.top_logprobs
        logprobs = None if k is None else self._logprobs(prompt_ids, ids, k)
        reason = "stop" if len(ids) < request.max_tokens else "length"
        return cut_at_stop(Completion(self._text(ids), logprobs, reason), request.stop)

    def _logprobs(self, prompt_ids: Sequence[int], ids: Sequence[int], k: int) -> Logprobs:
        chosen_T, top_TK, ids_TK = self._teacher_forced(prompt_ids, ids, k)
        tokens, logprobs, tops = [], [], []
        for token, start, end in self._whole_characters(ids):
            top = self._top(ids_TK[start], top_TK[start])
            tokens.append(token)
            logprobs.append(sum(chosen_T[start:end]))
            tops.append(top if end == start + 1 else top | {token: logprobs[-1]})
        return Logprobs(tuple(tokens), tuple(logprobs), tuple(tops))

    def _teacher_forced(self, prompt_ids: Sequence[int], ids: Sequence[int], k: int):
        """Log-probabilities of the ids [T], and those [T, K] and ids [T, K] of the top k."""
        torch = self._torch
        ids_1S = torch.tensor([[*prompt_ids, *ids]], device=self._model.device)
        with torch.inference_mode():
            output = self._model(ids_1S, use_cache=False, logits_to_keep=len(ids) + 1)
            logprobs_TV = output.logits[0, :-1].float().log_softmax(-1)
            chosen_T1 = logprobs_TV.gather(1, ids_1S[0, len(prompt_ids) :, None])
            logprobs_TV[:, self._special] = -torch.inf
            top = logprobs_TV.topk(k)
        return chosen_T1[:, 0].tolist(), top.values.tolist(), top.indices.tolist()

    def _whole_characters(self, ids: Sequence[int]) -> Iterator[tuple[str, int, int]]:
        """Yields (string, start, end) of the shortest runs of ids that are whole characters."""
        start, written = 0, ""
        for end in range(1, len(ids) + 1):
            text = self._text(ids[:end])
            if text.endswith(_BROKEN) and end < len(ids):
                continue
            yield text[len(written) :], start, end
            start, written = end, text

    def _top(self, ids: Sequence[int], logprobs: Sequence[float]) -> dict[str, float]:
        tokens = map(self._text_of_one, ids)
        entries = zip(tokens, logprobs, strict=True)
        return {token: value for token, value in entries if token and _BROKEN not in token}

    def _text(self, ids: Sequence[int]) -> str:
        """The text of ids that continue one: some decoders drop the space that begins a text."""
        decode = partial(
            self._tokenizer.decode, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return decode([*self._before, *ids])[len(decode(self._before)) :]


def _draws(request: Request) -> dict[str, Any]:
    """How transformers draws; by default it would cut to the 50 likeliest tokens."""
    if request.temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": 0,
    }


def _ends(model, tokenizer) -> list[int]:
    """The ids that end a text; a model may have several."""
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return [i for i in dict.fromkeys([*ends, tokenizer.eos_token_id]) if i is not None]


def _not_installed(error: ImportError) -> UserError:
    return UserError(
        f"no {error.name}" if error.name else str(error).strip(),
        "PyTorch and transformers, and gguf for GGUF files",
        'pip install "cot-flax[huggingface]"',
    )
