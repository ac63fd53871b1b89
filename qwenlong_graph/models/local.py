"""A model in this process, run by transformers and offered as LangChain's `ChatHuggingFace`.

That class leaves out for models in the process what reading needs: async calls, stop texts, seeds,
token limits, usage and thoughts. They are added here.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import queue
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from pydantic import PrivateAttr
from typing_extensions import override

from qwenlong_graph.errors import (
    ContextOverflowError,
    MissingExtraError,
    ModelRefusedError,
    SettingsError,
)
from qwenlong_graph.models.tgi_messages import Chunks, message_of, usage_of
from qwenlong_graph.models.tgi_prompt import ChatTemplate
from qwenlong_graph.models.tgi_reply import Piece, Reply, Wanted
from qwenlong_graph.models.tgi_wire import Final, TokenEvent
from qwenlong_graph.models.tokenizer import LocalTokenizer, load_tokenizer

if TYPE_CHECKING:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForLLMRun,
        CallbackManagerForLLMRun,
    )

__all__ = ["DEFAULT_WINDOW_MAX", "ChatTransformers", "LocalModel", "load_model"]

DEFAULT_WINDOW_MAX = 32_768
"""Without a window asked for, a model trained on more gets this many tokens: memory is finite."""

# How often a call that waits for its turn looks whether it is still wanted.
TURN_POLL_S = 0.1
# A generation is read as text from so many tokens before its open end, so that spaces come right.
DECODE_TOKENS = 6

_SETTINGS = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")


@dataclass(frozen=True)
class LocalModel:
    """A loaded model: `window` is in tokens of prompt plus output."""

    chat: ChatTransformers
    window: int
    tokenizer: LocalTokenizer
    name: str


def load_model(source: str, *, window: int | None = None) -> LocalModel:
    """The model of a folder, a hub id or a GGUF file, on the devices and in the type it suits.

    Without `window`, what the model was trained on, up to `DEFAULT_WINDOW_MAX`. No code of the
    model's repository is run. Raises `MissingExtraError`, and `SettingsError` where the model
    cannot be loaded, has no chat template, or has not the window asked for.
    """
    try:
        import accelerate  # noqa: F401 - transformers needs it
        import torch  # noqa: F401 - likewise
    except ImportError as error:
        raise MissingExtraError(f"Running {source} in this process", "transformers") from error
    from transformers import AutoModelForCausalLM, TextGenerationPipeline

    folder, gguf_file = source, None
    if source.endswith(".gguf"):
        path = Path(source).expanduser()
        folder, gguf_file = str(path.parent), path.name
    # Cheap things first: a missing chat template is found before gigabytes are loaded.
    counting = LocalTokenizer(folder, gguf_file=gguf_file)
    tokenizer = load_tokenizer(folder, gguf_file=gguf_file)
    loader: Any = AutoModelForCausalLM
    try:
        model = loader.from_pretrained(
            folder,
            dtype="auto",
            device_map="auto",
            **({"gguf_file": gguf_file} if gguf_file else {}),
        )
    except Exception as error:  # safetensors and others have errors with no other base
        raise SettingsError(
            f"Loading the model {source} failed ({type(error).__name__}). Check that it is the "
            "folder or hub id of a language model that transformers knows, that its files are "
            "whole, and that they fit the memory."
        ) from error
    window = _window(source, model.config, window)
    name = Path(source).name if Path(source).exists() else source
    pipeline: Any = TextGenerationPipeline
    chat = ChatTransformers(
        llm=HuggingFacePipeline(pipeline=pipeline(model=model, tokenizer=tokenizer)),
        model_id=name,
        tokenizer=tokenizer,
    )
    chat._place = _Place(model, tokenizer, ChatTemplate(tokenizer, source=source), window)
    return LocalModel(chat, window, counting, name)


def _window(source: str, config: Any, wanted: int | None) -> int:
    trained = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(trained, int):
        if wanted is None:
            raise SettingsError(
                f"The model {source} does not tell its context window. Pass window, in tokens."
            )
        return wanted
    if wanted is not None and wanted > trained:
        raise SettingsError(
            f"A window of {wanted:,} tokens was asked for, and {source} was trained on "
            f"{trained:,}. Ask for at most that many."
        )
    return wanted or min(trained, DEFAULT_WINDOW_MAX)


@dataclass(eq=False)
class _Place:
    """A model where it lies, and whose turn it is: one generation at a time."""

    model: Any
    tokenizer: Any
    template: ChatTemplate
    window: int
    turn: threading.Lock = field(default_factory=threading.Lock)


class ChatTransformers(ChatHuggingFace):
    """A chat model in this process. Made by `connect("transformers:MODEL_OR_FOLDER")`.

    - Thoughts (`<think>`) become a `reasoning` content block, and are no part of `.text`.
    - A call may set `max_tokens`, `temperature` (0 decodes greedily), `top_p`, `top_k`,
      `repetition_penalty` and `seed`; what is None is left to the model's own generation settings.
    - Calls take turns. Leaving a stream, or cancelling the task, ends the generation.
    - There are no tools and no structured output: no grammar can bind the model here.
    - Errors are `ContextOverflowError`, `ModelRefusedError` (out of memory) and `SettingsError`.
    """

    _place: _Place = PrivateAttr()

    @property
    def _llm_type(self) -> str:
        return "transformers"

    @override
    def get_num_tokens(self, text: str) -> int:
        return self._place.template.count(text)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        return self._place.template.token_ids(text)

    @override
    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        raise NotImplementedError(
            "A model in this process takes no tools. Serve it, and connect to the server."
        )

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        stream: bool | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = self._reply(messages, stop, kwargs)
        pieces = [piece for found in self._pieces(reply) for piece in found]
        return self._result(reply, pieces)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        stream: bool | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = self._reply(messages, stop, kwargs)
        pieces: list[Piece] = []
        async with contextlib.aclosing(self._apieces(reply)) as all_found:
            async for found in all_found:
                pieces += found
        return self._result(reply, pieces)

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        stream_usage: bool | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        reply = self._reply(messages, stop, kwargs)
        chunks = Chunks(has_blocks=False)
        with contextlib.closing(self._pieces(reply)) as all_found:
            for found in all_found:
                yield from chunks.of(found)
        yield chunks.last(
            usage=usage_of(reply, self._place.template), metadata=self._metadata(reply)
        )

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        *,
        stream_usage: bool | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        reply = self._reply(messages, stop, kwargs)
        chunks = Chunks(has_blocks=False)
        async with contextlib.aclosing(self._apieces(reply)) as all_found:
            async for found in all_found:
                for chunk in chunks.of(found):
                    yield chunk
        yield chunks.last(
            usage=usage_of(reply, self._place.template), metadata=self._metadata(reply)
        )

    def _reply(
        self, messages: list[BaseMessage], stop: list[str] | None, options: Mapping[str, Any]
    ) -> Reply:
        unknown = options.keys() - {"max_tokens", *_SETTINGS}
        if unknown:
            raise SettingsError(
                f"A model in this process knows no setting {', '.join(sorted(unknown))} of a "
                f"call. It knows: max_tokens, {', '.join(_SETTINGS)}."
            )
        settings = {name: options.get(name) for name in _SETTINGS}
        for name in ("temperature", "top_p", "seed"):
            if settings[name] is None:
                settings[name] = getattr(self, name)
        limit = options.get("max_tokens") or self.max_tokens
        own_stop = [self.stop] if isinstance(self.stop, str) else self.stop
        return Reply(
            self._place.template.render(messages),
            Wanted(
                parameters=settings,
                max_tokens=limit,
                stop=[text for text in (own_stop if stop is None else stop) or () if text],
            ),
        )

    def _pieces(self, reply: Reply) -> Generator[list[Piece], None, None]:
        for step in reply.steps():
            with contextlib.closing(_Generation(self._place, step.body)) as generation:
                while (event := generation.next_event()) is not None:
                    pieces = step.feed(event)
                    if pieces:
                        yield pieces
                    if step.is_settled:
                        break

    async def _apieces(self, reply: Reply) -> AsyncGenerator[list[Piece], None]:
        for step in reply.steps():
            with contextlib.closing(_Generation(self._place, step.body)) as generation:
                while (event := await asyncio.to_thread(generation.next_event)) is not None:
                    pieces = step.feed(event)
                    if pieces:
                        yield pieces
                    if step.is_settled:
                        break

    def _result(self, reply: Reply, pieces: list[Piece]) -> ChatResult:
        message = message_of(
            pieces, usage=usage_of(reply, self._place.template), metadata=self._metadata(reply)
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _metadata(self, reply: Reply) -> dict[str, Any]:
        return {
            "model_name": self.model_id,
            "model_provider": "transformers",
            "finish_reason": reply.finish_reason,
            "is_thinking_cut": reply.is_thinking_cut,
        }


class _Generation:
    """One prompt being continued in a thread of its own; `close` ends it at the next token."""

    def __init__(self, place: _Place, body: Mapping[str, Any]) -> None:
        import torch

        self._place = place
        self._settings: Mapping[str, Any] = body["parameters"]
        self._tokenizer = place.tokenizer
        self._prompt = torch.tensor([self._tokenizer.encode(body["inputs"])])
        self._read = self._prompt.shape[1]
        room = place.window - self._read
        if room < 1:
            raise ContextOverflowError(
                f"The prompt has {self._read:,} tokens and the window {place.window:,}. "
                "Use smaller chunks or a larger window."
            )
        self._limit = min(self._settings.get("max_new_tokens") or room, room)
        self._ids: list[int] = []
        self._shown = 0
        self._is_over = False
        self._is_unwanted = threading.Event()
        # Token ids; then None, or what went wrong.
        self._tokens: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._config = self._generation_config()
        self._thread = threading.Thread(target=self._run, name="transformers", daemon=True)
        self._thread.start()

    def next_event(self) -> TokenEvent | None:
        """The next token, as soon as there is one; None after the last."""
        if self._is_over:
            return None
        token = self._tokens.get()
        if token is None:
            self._is_over = True
            return None
        if isinstance(token, BaseException):
            self._is_over = True
            self._raise(token)
        self._ids.append(token)
        count = len(self._ids)
        reason = None
        if token in _ends_of(self._config):
            reason = "eos_token"
        elif count >= self._limit:
            reason = "length"
        self._is_over = reason is not None
        if self._is_over:
            self._thread.join()  # it gives back the random state before the reply is out
        text = self._new_text(is_last=self._is_over)
        return TokenEvent(text, Final(reason, count, self._read) if reason else None)

    def close(self) -> None:
        """Ends the generation; what it still gives is thrown away."""
        self._is_unwanted.set()

    def _new_text(self, *, is_last: bool) -> str:
        """What the last token adds, empty where a character is not yet whole."""
        start = max(0, self._shown - DECODE_TOKENS)
        decode = self._tokenizer.decode
        before = decode(self._ids[start : self._shown], skip_special_tokens=True)
        text = decode(self._ids[start:], skip_special_tokens=True)
        if text.endswith("\ufffd") and not is_last:
            return ""
        self._shown = len(self._ids)
        return str(text[len(before) :])

    def _generation_config(self) -> Any:
        config = copy.deepcopy(self._place.model.generation_config)
        told = {name: self._settings.get(name) for name in ("temperature", "top_p", "top_k")}
        if told["temperature"] == 0:
            config.do_sample = False
            config.temperature = config.top_p = config.top_k = None
        elif any(value is not None for value in told.values()):
            config.do_sample = True
            for name, value in told.items():
                if value is not None:
                    setattr(config, name, value)
        if self._settings.get("repetition_penalty") is not None:
            config.repetition_penalty = self._settings["repetition_penalty"]
        config.max_new_tokens, config.max_length = self._limit, None
        if config.eos_token_id is None:
            config.eos_token_id = self._tokenizer.eos_token_id
        if config.pad_token_id is None:
            config.pad_token_id = min(_ends_of(config))
        return config

    def _run(self) -> None:
        while not self._place.turn.acquire(timeout=TURN_POLL_S):
            if self._is_unwanted.is_set():
                self._tokens.put(None)
                return
        try:
            if not self._is_unwanted.is_set():
                self._generate()
        except BaseException as error:  # noqa: BLE001 - raised again where the tokens are read
            self._tokens.put(error)
        else:
            self._tokens.put(None)
        finally:
            self._place.turn.release()

    def _generate(self) -> None:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        generation = self

        class Handed(StoppingCriteria):
            def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
                generation._tokens.put(int(input_ids[0, -1]))
                is_unwanted = generation._is_unwanted.is_set()
                return torch.full((1,), is_unwanted, dtype=torch.bool, device=input_ids.device)

        model, seed = self._place.model, self._settings.get("seed")
        prompt = self._prompt.to(model.device)
        cards = sorted(
            {part.device.index for part in model.parameters() if part.device.type == "cuda"}
        )
        # The seed is this call's alone: whoever else draws numbers in this process goes on.
        with torch.random.fork_rng(devices=cards, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=self._config,
                stopping_criteria=StoppingCriteriaList([Handed()]),
            )

    def _raise(self, error: BaseException) -> NoReturn:
        import torch

        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise ModelRefusedError(
                f"The memory of the device was too small for a prompt of {self._read:,} tokens. "
                "Use a smaller window or smaller chunks, or a machine with more memory."
            ) from error
        raise error


def _ends_of(config: Any) -> list[int]:
    ends = config.eos_token_id
    return ends if isinstance(ends, list) else [ends]
