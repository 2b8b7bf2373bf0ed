"""OpenAI's HTTP API over one student, on aiohttp: completions, chats, models, health."""

import asyncio
import contextlib
import json
import signal
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Sequence

from aiohttp import web

from cot_flax.errors import UserError
from cot_flax.serving.asking import FITS, Reasoner
from cot_flax.serving.engine import FAILED, ClosedError, Engine, FullError, Job
from cot_flax.serving.protocol import (
    TOP_K,
    Asked,
    BadRequestError,
    Choice,
    Envelope,
    error_body,
    read_request,
    usage_of,
)
from cot_flax.text.prompting import Prompting
from cot_flax.training import interruption

_DRAIN = 60.0  # seconds that running answers have when the server is told to end
_RETRY = {"Retry-After": "1"}


class Server:
    """Answers requests; `app` is aiohttp's application.

    Args:
        name: of the model, as clients call it.
        prompting: of chats.
        format: of chats, of `prompts.FORMATS`.
        max_tokens: the most that a request may ask for.
        max_prompt_tokens: a longer prompt is refused.
        slots: texts decoded at once.
        queue: texts that may wait; a request beyond that is answered with 429.

    Raises:
        UserError: too little memory, or no prompt of this format.
    """

    def __init__(
        self,
        student: Reasoner,
        *,
        name: str,
        prompting: Prompting,
        format: str = "zero_shot_cot",
        max_tokens: int,
        max_prompt_tokens: int = 1024,
        slots: int = 8,
        queue: int = 64,
    ):
        prompting.prompt("?", format)  # what is wrong with it is said before anybody asks
        self.name, self._prompting, self._format = name, prompting, format
        self._generator = student.generator
        self._max_tokens, self._max_prompt_tokens = max_tokens, max_prompt_tokens
        self._created = int(time.time())
        self._ending = False
        self.engine = Engine(self._generator, slots=slots, max_tokens=max_tokens, queue=queue)
        with interruption.memory_named(FITS):
            self.engine.warm_up()
        self.app = web.Application(middlewares=[_errors], client_max_size=8 * 2**20)
        self.app.add_routes(
            [
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chats),
                web.get("/v1/models", self._models),
                web.get("/v1/models/{name:.+}", self._model),
                web.get("/health", self._health),
            ]
        )
        self.app.on_shutdown.append(self._end)

    async def run(
        self, host: str, port: int, *, started: Callable[[str], None], stop: asyncio.Event
    ) -> None:
        """Serves until `stop` is set; running answers are then finished.

        Args:
            port: 0 takes a free one.
            started: gets the address.

        Raises:
            UserError: the address cannot be had.
        """
        runner = web.AppRunner(
            self.app, handler_cancellation=True, access_log=None, shutdown_timeout=_DRAIN
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port)
            try:
                await site.start()
            except OSError as error:
                raise UserError(
                    f"{host}:{port} ({error.strerror})",
                    "an address of this machine and a free port",
                    "choose another --port, or 0 for any that is free",
                ) from error
            bound = runner.addresses[0]
            started(f"http://{host}:{bound[1]}/v1")
            await stop.wait()
        finally:
            await runner.cleanup()
            await asyncio.to_thread(self.engine.close)

    async def run_until_signal(self, host: str, port: int, started: Callable[[str], None]) -> None:
        """The same until SIGTERM or Ctrl-C."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await self.run(host, port, started=started, stop=stop)

    async def _end(self, app) -> None:
        del app
        self._ending = True

    async def _health(self, request) -> web.Response:
        del request
        decoding, waiting = self.engine.load
        failed = self.engine.failure
        status = "failed" if failed else "ending" if self._ending else "ok"
        body = {"status": status, "decoding": decoding, "waiting": waiting}
        if failed:
            body["error"] = f"{type(failed).__name__}: {failed}"[:500]
        return web.json_response(body, status=200 if status == "ok" else 503)

    async def _models(self, request) -> web.Response:
        del request
        return web.json_response({"object": "list", "data": [self._card()]})

    async def _model(self, request) -> web.Response:
        wanted = request.match_info["name"]
        if wanted != self.name:
            message = f"The model {wanted!r} does not exist; this server has {self.name!r}"
            raise BadRequestError(message, "model", "model_not_found", 404)
        return web.json_response(self._card())

    def _card(self) -> dict:
        card = {"id": self.name, "object": "model", "created": self._created}
        return card | {"owned_by": "cot-flax"}

    async def _completions(self, request) -> web.StreamResponse:
        return await self._complete(request, chat=False)

    async def _chats(self, request) -> web.StreamResponse:
        return await self._complete(request, chat=True)

    async def _complete(self, request: web.Request, *, chat: bool) -> web.StreamResponse:
        try:
            body = await request.json()
        except ValueError as error:
            raise BadRequestError(f"the body is not JSON: {error}") from None
        asked = read_request(body, chat=chat, max_tokens=self._max_tokens, model=self.name)
        choices = self._choices(asked)
        kind = "chatcmpl" if chat else "cmpl"
        envelope = Envelope(f"{kind}-{uuid.uuid4().hex}", int(time.time()), self.name, chat)
        if self._ending:
            raise ClosedError
        parts = self._parts(asked, choices)
        async with contextlib.aclosing(parts):
            first = await anext(parts)  # with what the engine refuses, before a stream is begun
            if not asked.stream:
                return web.json_response(await self._whole(asked, choices, envelope, parts))
            return await self._stream(request, asked, choices, envelope, first, parts)

    def _choices(self, asked: Asked) -> list[Choice]:
        prompts = [self._ids(prompt, asked) for prompt in asked.prompts]
        tokenizer = self._generator.tokenizer
        return [
            Choice(place * asked.n + i, ids, tokenizer, asked.stop)
            for place, ids in enumerate(prompts)
            for i in range(asked.n)
        ]

    def _ids(self, prompt, asked: Asked) -> list[int]:
        where = "messages" if asked.chat else "prompt"
        if asked.chat:
            try:
                prompt = self._prompting.chat(prompt, self._format)
            except UserError as error:
                raise BadRequestError(str(error), where) from error
        size = self._generator.tokenizer.vocab_size
        if not isinstance(prompt, str) and not all(0 <= i < size for i in prompt):
            raise BadRequestError(f"prompt has ids outside of 0 to {size - 1}", where)
        ids = self._generator.encode(prompt)
        if len(ids) > self._max_prompt_tokens:
            raise BadRequestError(
                f"a prompt of {len(ids)} tokens; this server takes {self._max_prompt_tokens}",
                where,
                "context_length_exceeded",
            )
        return ids

    async def _parts(
        self, asked: Asked, choices: Sequence[Choice]
    ) -> AsyncGenerator[tuple[Choice, str] | None, None]:
        """New text by choice, as it comes; at first None, when the engine has taken all.

        Whoever stops listening, because a client has gone, frees the slots.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue = asyncio.Queue()

        def teller(choice):
            def tell(ids, reason):
                loop.call_soon_threadsafe(queue.put_nowait, (choice, ids, reason))

            return tell

        jobs = {
            choice.index: Job(
                self._generator.ready(choice.prompt),
                asked.max_tokens,
                asked.temperature,
                asked.top_p,
                asked.seed % 2**64,
                choice.index % asked.n,
                teller(choice),
            )
            for choice in choices
        }
        if len(jobs) > self.engine.most:
            message = f"{len(jobs)} texts at once; this server takes {self.engine.most}"
            raise BadRequestError(message, "n")
        self.engine.submit(list(jobs.values()))
        try:
            yield None
            while jobs:
                choice, ids, reason = await queue.get()
                if choice.index not in jobs:  # told once more after its stop text
                    continue
                if reason == FAILED:
                    raise ClosedError
                new = choice.grow(ids, reason)
                if choice.reason:
                    self.engine.cancel([jobs.pop(choice.index)])
                if new or choice.reason:
                    yield choice, new
        finally:
            self.engine.cancel(list(jobs.values()))

    async def _whole(self, asked, choices, envelope, parts) -> dict:
        async for _ in parts:
            pass
        rows = [(choice, await self._logprobs(asked, choice)) for choice in choices]
        return envelope.answer(rows, usage_of(choices, asked.n))

    async def _stream(self, request, asked, choices, envelope, first, parts) -> web.StreamResponse:
        del first
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)

        async def send(body: dict) -> None:
            await response.write(f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode())

        for choice in choices if asked.chat else ():
            await send(envelope.first(choice.index))
        try:
            async for choice, new in parts:
                await send(envelope.part(choice, new, await self._logprobs(asked, choice)))
        except ClosedError:
            await send(error_body("the decoder has stopped", "server_error"))
        else:
            if asked.usage:
                await send(envelope.counts(usage_of(choices, asked.n)))
            await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _logprobs(self, asked: Asked, choice: Choice) -> dict | None:
        """Of the tokens that were not reported before: teacher-forced, as the student itself has
        them, whatever temperature they were drawn at."""
        if asked.logprobs is None or not choice.ids:
            return None
        score = self._generator.score
        (scores,) = await asyncio.to_thread(score, [choice.prompt], [choice.ids], TOP_K)
        return choice.logprobs(scores, asked.logprobs, asked.chat)


@web.middleware
async def _errors(request: web.Request, handler) -> web.StreamResponse:
    """What goes wrong before an answer is begun, as OpenAI's clients read it."""
    try:
        return await handler(request)
    except BadRequestError as error:
        return web.json_response(error.body, status=error.status)
    except FullError:
        body = error_body("too many requests wait; try again", "rate_limit_error")
        return web.json_response(body, status=429, headers=_RETRY)
    except ClosedError:
        body = error_body("the server is ending, or its decoder has stopped", "server_error")
        return web.json_response(body, status=503, headers=_RETRY)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        body = error_body(
            f"{error.reason}: {request.method} {request.path}", "invalid_request_error"
        )
        return web.json_response(body, status=error.status)
