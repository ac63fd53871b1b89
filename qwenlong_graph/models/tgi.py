"""`ChatTGI`: a LangChain chat model on TGI's own `/generate_stream` and `/generate`.

The chat template is applied here, so the prompt is exact and countable; top_k and
repetition_penalty reach the server, which TGI's chat endpoint does not offer; and a reply counts
only when its final event has come.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import AliasChoices, ConfigDict, Field, PrivateAttr, SecretStr, field_validator
from typing_extensions import override

from qwenlong_graph.errors import ModelOverloadedError, ModelUnavailableError, SettingsError
from qwenlong_graph.models.tgi_messages import Chunks, message_of, usage_of
from qwenlong_graph.models.tgi_prompt import ChatTemplate, Prompt, load_template
from qwenlong_graph.models.tgi_reply import Piece, Reply, Wanted
from qwenlong_graph.models.tgi_wire import (
    CONNECT_TIMEOUT_S,
    Connections,
    TokenEvent,
    TokenReader,
    checked_address,
    events_of_reply,
    redirect_error,
    server_error,
    timeout_error,
    transport_error,
    unusable_reply_error,
)

if TYPE_CHECKING:
    import httpx
    from langchain_core.callbacks import (
        AsyncCallbackManagerForLLMRun,
        CallbackManagerForLLMRun,
    )
    from langchain_core.output_parsers import BaseOutputParser

__all__ = ["ChatTGI"]

ERROR_BODY_BYTES_MAX = 1 << 16
# Between a reply's final event and the end of the answer; waiting for it keeps the connection.
ENDING_S = 1

# What a call may set, besides the fields of the same name.
_CALL_ONLY = frozenset(
    {
        "answer_schema", "model", "parallel_tool_calls", "response_format", "stream", "strict",
        "tool_choice", "tools",
    }
)  # fmt: skip
_SAMPLING = ("temperature", "top_p", "top_k", "typical_p")
_ALWAYS_SENT = ("repetition_penalty", "frequency_penalty", "seed")
_SETTINGS = (*_SAMPLING, *_ALWAYS_SENT, "max_tokens")


@dataclass(eq=False)
class _Kept:
    """What a model and its shallow copies share: connections, and what was found out once."""

    connections: Connections = field(default_factory=Connections)
    model_ids: dict[str, str] = field(default_factory=dict)
    templates: dict[str, ChatTemplate] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        # In another process, or in a deep copy, all of it begins anew.
        return _Kept, ()


class ChatTGI(BaseChatModel):
    """A chat model served by Text Generation Inference (TGI).

    ```python
    from qwenlong_graph.models.tgi import ChatTGI

    chat = ChatTGI(base_url="http://127.0.0.1:8080", tokenizer="models/QwenLong-L1.5-30B-A3B")
    ```

    - Thoughts (`<think>`) become a `reasoning` content block, and are no part of `.text`. Their
      tokens are `usage_metadata["output_token_details"]["reasoning"]`. A reply that ended inside
      its thoughts has `response_metadata["is_thinking_cut"]` set.
    - Settings that are None are left to the server, which decodes greedily unless told to sample.
    - `with_structured_output`, tools and stop texts do not bind the thoughts: a thinking model is
      asked once until `</think>` and once more for the rest.
    - Leaving a stream, closing it, or cancelling the task closes the connection, and the server
      frees the slot.
    - Errors are those of `qwenlong_graph.errors`: `ModelUnavailableError`,
      `ModelOverloadedError`, `ModelRefusedError`, `ContextOverflowError`, `SettingsError`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    base_url: str
    """The server's address, such as `http://127.0.0.1:8080`. Its redirects are not followed."""
    api_key: SecretStr | None = Field(default=None, repr=False, exclude=True)
    """Sent as a bearer token. Read it from the environment or a keyring; nothing here does."""
    tokenizer: str | None = None
    """The model's folder or hub id, for its chat template; None asks the server for its
    `model_id`, which must then be a hub id or a folder on this machine too."""
    model_name: str | None = Field(
        default=None, validation_alias=AliasChoices("model_name", "model")
    )
    """The name shown in metadata and traces; None shows the server's `model_id`, once known."""
    temperature: float | None = None
    """0 decodes greedily."""
    top_p: float | None = None
    top_k: int | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    """Output tokens, thoughts included; None lets the server fill its window."""
    stop: list[str] | None = None
    """Texts that end the answer, and are left out of it. They do not end thoughts."""
    token_timeout_s: float = Field(
        default=600, gt=0, validation_alias=AliasChoices("token_timeout_s", "timeout")
    )
    """Seconds without a token after which a stream is given up, whatever keep-alive comments
    come; it includes the server's queue and the reading of the prompt. In sync calls the end is
    noticed at the next sign of life, at most as many seconds later."""
    max_retries: int = Field(default=0, ge=0)
    """How often a request is sent again that the server refused or failed before its reply began
    (429, 5xx, no connection). A stream that began is never repeated."""
    streaming: bool = False
    """Whether `invoke` hands each chunk to callbacks. It reads the token stream either way;
    only `disable_streaming=True` makes it use `/generate`, for gateways that hold streams back."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Given to the chat template, such as `{"enable_thinking": False}`."""

    _kept: _Kept = PrivateAttr(default_factory=_Kept)

    @field_validator("base_url")
    @classmethod
    def _check_address(cls, value: str) -> str:
        return checked_address(value)

    @field_validator("tokenizer", mode="before")
    @classmethod
    def _plain_path(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    # --- what LangChain asks about a model ---

    @property
    def _llm_type(self) -> str:
        return "tgi"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in (*_SETTINGS, "stop")}
        told = {name: value for name, value in values.items() if value is not None}
        return {"base_url": self.base_url, "model_name": self._shown_name(), **told}

    @override
    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop or self.stop, **kwargs)
        params["ls_provider"] = "tgi"
        params.setdefault("ls_model_name", self._shown_name())
        return params

    def _shown_name(self) -> str:
        return self.model_name or self._kept.model_ids.get(self.base_url) or "tgi"

    @override
    def get_token_ids(self, text: str) -> list[int]:
        return self._template().token_ids(text)

    @override
    def get_num_tokens(self, text: str) -> int:
        return self._template().count(text)

    @override
    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """The exact number of tokens of the prompt that these messages become."""
        template = self._template()
        prompt = template.render(
            messages,
            tools=[convert_to_openai_tool(tool) for tool in tools or ()],
            template_settings=self.chat_template_kwargs,
        )
        return template.count_prompt(prompt)

    # --- calls ---

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        # Named, because callers look up here what a call may set.
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
        response_format: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        template = self._template()
        reply = self._reply(
            template,
            messages,
            stop,
            {
                **kwargs,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "repetition_penalty": repetition_penalty,
                "seed": seed,
                "response_format": response_format,
            },
        )
        pieces: list[Piece] = []
        for found in self._pieces(reply):
            pieces += found
        return self._result(reply, pieces, template)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        template = await self._atemplate()
        reply = self._reply(template, messages, stop, kwargs)
        pieces: list[Piece] = []
        async with contextlib.aclosing(self._apieces(reply)) as all_found:
            async for found in all_found:
                pieces += found
        return self._result(reply, pieces, template)

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        template = self._template()
        reply = self._reply(template, messages, stop, kwargs)
        chunks = Chunks(has_blocks=bool(kwargs.get("tools")))
        with contextlib.closing(self._pieces(reply)) as all_found:
            for found in all_found:
                yield from chunks.of(found)
        yield chunks.last(usage=usage_of(reply, template), metadata=self._metadata(reply))

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        template = await self._atemplate()
        reply = self._reply(template, messages, stop, kwargs)
        chunks = Chunks(has_blocks=bool(kwargs.get("tools")))
        async with contextlib.aclosing(self._apieces(reply)) as all_found:
            async for found in all_found:
                for chunk in chunks.of(found):
                    yield chunk
        yield chunks.last(usage=usage_of(reply, template), metadata=self._metadata(reply))

    # --- tools and structured output ---

    @override
    def bind_tools(
        self,
        tools: Sequence[Mapping[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool = True,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools it may call; arguments always fit the tool's schema.

        `tool_choice`: "auto" (default) lets the model decide; "any" makes it call one of them, a
        name that one; "none" keeps it from calling. Only "auto" gives several calls in one reply.
        """
        told = [convert_to_openai_tool(tool) for tool in tools]
        _tools_of({"tools": told, "tool_choice": tool_choice})
        return self.bind(
            tools=told, tool_choice=tool_choice, parallel_tool_calls=parallel_tool_calls, **kwargs
        )

    @override
    def with_structured_output(
        self,
        schema: Mapping[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """The model with its answers parsed into `schema` (a pydantic class, TypedDict, or dict).

        A grammar holds the answer to the schema, so it is always strict, and "json_mode" is the
        same as "json_schema". Thoughts come before it and are left out. A reply that the token
        limit cut raises LangChain's `OutputParserException`.
        """
        from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
        from langchain_core.output_parsers.openai_tools import (
            JsonOutputKeyToolsParser,
            PydanticToolsParser,
        )

        plain: Any = schema
        json_schema = convert_to_json_schema(plain)
        traced = {"kwargs": {"method": method, "strict": strict}, "schema": json_schema}
        is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
        parser: BaseOutputParser[Any]
        if method == "function_calling":
            name = convert_to_openai_tool(plain)["function"]["name"]
            bound: Runnable[LanguageModelInput, AIMessage] = self.bind_tools(
                [schema], tool_choice=name, ls_structured_output_format=traced, **kwargs
            )
            parser = (
                PydanticToolsParser(tools=[plain], first_tool_only=True)
                if is_class
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        elif method in {"json_schema", "json_mode"}:
            bound = self.bind(
                response_format={"type": "json", "value": json_schema},
                answer_schema=json_schema,
                ls_structured_output_format=traced,
                **kwargs,
            )
            parser = PydanticOutputParser(pydantic_object=plain) if is_class else JsonOutputParser()
        else:
            raise SettingsError(
                f"Structured output by {method!r} was asked for. "
                "Use json_schema, function_calling or json_mode."
            )
        if not include_raw:
            return bound | parser
        parsed = RunnablePassthrough.assign(
            parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
        )
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=bound) | parsed.with_fallbacks(
            [failed], exception_key="parsing_error"
        )

    # --- the template ---

    def _template(self) -> ChatTemplate:
        source = self.tokenizer or self._kept.model_ids.get(self.base_url) or self._told_model_id()
        return self._loaded(source)

    async def _atemplate(self) -> ChatTemplate:
        source = (
            self.tokenizer
            or self._kept.model_ids.get(self.base_url)
            or await self._atold_model_id()
        )
        if source in self._kept.templates:
            return self._kept.templates[source]
        return await asyncio.to_thread(self._loaded, source)

    def _loaded(self, source: str) -> ChatTemplate:
        if source not in self._kept.templates:
            self._kept.templates[source] = load_template(source)
        return self._kept.templates[source]

    def _told_model_id(self) -> str:
        with _translated(self.base_url):
            response = self._kept.connections.client().send(self._info_request())
        return self._keep_model_id(response)

    async def _atold_model_id(self) -> str:
        client = await self._kept.connections.client_of_loop()
        with _translated(self.base_url):
            response = await client.send(self._info_request())
        return self._keep_model_id(response)

    def _info_request(self) -> httpx.Request:
        return self._request("GET", "/info", None)

    def _keep_model_id(self, response: httpx.Response) -> str:
        _check_status(self.base_url, response, response.content)
        told = _decoded(response.content)
        model_id = told.get("model_id") if isinstance(told, dict) else None
        if not isinstance(model_id, str) or not model_id:
            raise unusable_reply_error(self.base_url, "no model_id under /info")
        self._kept.model_ids[self.base_url] = model_id
        return model_id

    # --- one reply ---

    def _reply(
        self,
        template: ChatTemplate,
        messages: list[BaseMessage],
        stop: list[str] | None,
        options: Mapping[str, Any],
    ) -> Reply:
        self._check_options(options)
        tools, schemas, must_call = _tools_of(options)
        prompt: Prompt = template.render(
            messages,
            tools=tools,
            answer_schema=options.get("answer_schema"),
            template_settings=self.chat_template_kwargs,
        )
        grammar = _grammar_of(options.get("response_format"))
        if grammar is not None and schemas:
            raise SettingsError(
                "A call has both tools and a response_format, and one grammar cannot hold both. "
                "Ask for the tools first, and for the form in a call of its own."
            )
        settings = {
            name: getattr(self, name) if options.get(name) is None else options[name]
            for name in _SETTINGS
        }
        wanted = Wanted(
            parameters=_parameters(settings),
            max_tokens=settings["max_tokens"],
            stop=[text for text in (self.stop if stop is None else stop) or () if text],
            grammar=grammar,
            tools=schemas,
            must_call=must_call,
            one_call=options.get("parallel_tool_calls") is False,
        )
        return Reply(prompt, wanted)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        unknown = options.keys() - _CALL_ONLY - set(_SETTINGS)
        if unknown:
            raise SettingsError(
                f"ChatTGI knows no setting {', '.join(sorted(unknown))} of a call. "
                f"It knows: {', '.join(sorted(_CALL_ONLY | set(_SETTINGS)))}."
            )
        model = options.get("model")
        if model is not None and model != self._shown_name():
            raise SettingsError(
                f"A call asked for the model {model!r}, and a TGI server has one model. "
                "Make another ChatTGI for the server that has it."
            )

    def _pieces(self, reply: Reply) -> Generator[list[Piece], None, None]:
        for step in reply.steps():
            with contextlib.closing(self._events(step.body)) as batches:
                for events in batches:
                    if pieces := step.feed_all(events):
                        yield pieces
                    if step.is_settled and step.final is None:
                        break  # leaving closes the stream

    async def _apieces(self, reply: Reply) -> AsyncGenerator[list[Piece], None]:
        for step in reply.steps():
            async with contextlib.aclosing(self._aevents(step.body)) as batches:
                async for events in batches:
                    if pieces := step.feed_all(events):
                        yield pieces
                    if step.is_settled and step.final is None:
                        break  # leaving closes the stream

    def _events(self, body: Mapping[str, Any]) -> Generator[list[TokenEvent], None, None]:
        """The tokens of one request, as many at a time as arrive together."""
        is_stream = self.disable_streaming is not True
        request = self._request("POST", "/generate_stream" if is_stream else "/generate", body)
        reader = TokenReader(self.base_url)
        with (
            _translated(self.base_url, reader),
            contextlib.closing(self._opened(request)) as response,
        ):
            if not is_stream:
                yield _events_of_body(self.base_url, response, response.read())
                return
            _check_is_stream(self.base_url, response)
            since = time.monotonic()
            for data in response.iter_bytes():
                events = reader.feed(data)
                if events:
                    yield events
                    since = time.monotonic()
                elif time.monotonic() - since > self.token_timeout_s and not reader.is_complete:
                    raise timeout_error(self.base_url, self.token_timeout_s)
            reader.close()

    async def _aevents(self, body: Mapping[str, Any]) -> AsyncGenerator[list[TokenEvent], None]:
        """`_events`, without blocking the event loop, and with an exact deadline."""
        is_stream = self.disable_streaming is not True
        request = self._request("POST", "/generate_stream" if is_stream else "/generate", body)
        reader = TokenReader(self.base_url)
        loop = asyncio.get_running_loop()
        with _translated(self.base_url, reader):
            async with contextlib.aclosing(await self._aopened(request)) as response:
                if not is_stream:
                    yield _events_of_body(self.base_url, response, await response.aread())
                    return
                _check_is_stream(self.base_url, response)
                packets = response.aiter_bytes()
                deadline = loop.time() + self.token_timeout_s
                while True:
                    try:
                        async with asyncio.timeout_at(deadline):
                            data = await anext(packets, None)
                    except TimeoutError as error:
                        if reader.is_complete:
                            return
                        raise timeout_error(self.base_url, self.token_timeout_s) from error
                    if data is None:
                        break
                    events = reader.feed(data)
                    if events:
                        yield events
                        limit = ENDING_S if reader.is_complete else self.token_timeout_s
                        deadline = loop.time() + limit
                reader.close()

    # --- one request ---

    def _request(self, verb: str, path: str, body: Mapping[str, Any] | None) -> httpx.Request:
        import httpx

        headers = {"Accept-Encoding": "identity"}  # a compressed stream comes in lumps
        content = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            content = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        if self.api_key is not None:
            headers["Authorization"] = f"Bearer {self.api_key.get_secret_value()}"
        limit = self.token_timeout_s
        timeout = httpx.Timeout(limit, connect=min(CONNECT_TIMEOUT_S, limit), pool=None)
        return httpx.Request(
            verb,
            f"{self.base_url}{path}",
            headers=headers,
            content=content,
            extensions={"timeout": timeout.as_dict()},
        )

    def _opened(self, request: httpx.Request) -> httpx.Response:
        """The response of a request, its body unread; retried as `max_retries` says."""
        from tenacity import Retrying

        if not self.max_retries:
            return self._sent(request)
        return Retrying(**_retrying(self.max_retries))(self._sent, request)

    async def _aopened(self, request: httpx.Request) -> httpx.Response:
        from tenacity import AsyncRetrying

        if not self.max_retries:
            return await self._asent(request)
        return await AsyncRetrying(**_retrying(self.max_retries))(self._asent, request)

    def _sent(self, request: httpx.Request) -> httpx.Response:
        with _translated(self.base_url):
            response = self._kept.connections.client().send(request, stream=True)
            if response.status_code == 200:
                return response
            with contextlib.closing(response):
                body = b""
                for data in response.iter_bytes():
                    body += data
                    if len(body) > ERROR_BODY_BYTES_MAX:
                        break
        _check_status(self.base_url, response, body)
        return response

    async def _asent(self, request: httpx.Request) -> httpx.Response:
        client = await self._kept.connections.client_of_loop()
        with _translated(self.base_url):
            response = await client.send(request, stream=True)
            if response.status_code == 200:
                return response
            async with contextlib.aclosing(response):
                body = b""
                async for data in response.aiter_bytes():
                    body += data
                    if len(body) > ERROR_BODY_BYTES_MAX:
                        break
        _check_status(self.base_url, response, body)
        return response

    def _result(self, reply: Reply, pieces: list[Piece], template: ChatTemplate) -> ChatResult:
        message = message_of(
            pieces, usage=usage_of(reply, template), metadata=self._metadata(reply)
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _metadata(self, reply: Reply) -> dict[str, Any]:
        return {
            "model_name": self._shown_name(),
            "model_provider": "tgi",
            "finish_reason": reply.finish_reason,
            "is_thinking_cut": reply.is_thinking_cut,
        }

    # --- connections ---

    def close(self) -> None:
        """Closes the kept connections of sync calls; later calls open new ones."""
        self._kept.connections.close()

    async def aclose(self) -> None:
        """Closes the kept connections of the running event loop; later calls open new ones."""
        await self._kept.connections.aclose()


def _parameters(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in TGI's words; what it refuses but means nothing (top_p 1) is left out."""
    sent = {name: settings[name] for name in _ALWAYS_SENT if settings[name] is not None}
    sampling = {name: settings[name] for name in _SAMPLING if settings[name] is not None}
    if sampling.get("temperature") == 0:
        return sent
    for name in ("top_p", "typical_p"):
        if sampling.get(name) == 1:
            del sampling[name]
    # Without it, TGI decodes greedily at temperature 1.
    return {"do_sample": True, **sampling, **sent} if sampling else sent


def _grammar_of(response_format: object) -> Mapping[str, Any] | None:
    if response_format is None:
        return None
    if isinstance(response_format, Mapping):
        named = response_format.get("json_schema")
        schema = response_format.get("value")
        if isinstance(named, Mapping):
            schema = named.get("schema", named)
        if response_format.get("type") in {"json", "json_schema"} and isinstance(schema, Mapping):
            return schema
    raise SettingsError(
        "A response_format was given that ChatTGI does not know. Use "
        '{"type": "json_schema", "json_schema": {"schema": SCHEMA}} with a JSON schema.'
    )


def _tools_of(
    options: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]], bool]:
    """The tools to show the model, the schemas of those it may call, and whether it must."""
    tools: list[dict[str, Any]] = list(options.get("tools") or ())
    choice = options.get("tool_choice")
    if isinstance(choice, Mapping):
        choice = (choice.get("function") or choice).get("name", choice.get("type"))
    if not tools or choice == "none":
        return [], {}, False
    schemas = {
        tool["function"]["name"]: {
            "properties": {},
            "type": "object",
            "additionalProperties": False,
            **tool["function"].get("parameters", {}),
        }
        for tool in tools
    }
    if choice in {None, False, "auto"}:
        return tools, schemas, False
    if choice in {True, "any", "required"}:
        return tools, schemas, True
    if choice not in schemas:
        raise SettingsError(
            f"tool_choice names {choice!r}, which is no tool of this call. "
            f"It may be auto, any, none, or one of: {', '.join(schemas)}."
        )
    return tools, {choice: schemas[choice]}, True


@contextlib.contextmanager
def _translated(address: str, reader: TokenReader | None = None) -> Iterator[None]:
    """Turns the HTTP library's errors into ours; after the final event none matters."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        if reader is None or not reader.is_complete:
            raise transport_error(address, error) from error


def _check_status(address: str, response: httpx.Response, body: bytes) -> None:
    import httpx

    if response.status_code == 200:
        return
    if 300 <= response.status_code < 400:
        raise redirect_error(address, response.headers.get("location"))
    error = server_error(address, response.status_code, _decoded(body))
    # Keeps the response, and with it Retry-After, within reach of whoever looks for it.
    last: BaseException = error
    while last.__cause__ is not None:
        last = last.__cause__
    last.__cause__ = httpx.HTTPStatusError(
        f"HTTP {response.status_code}", request=response.request, response=response
    )
    raise error


def _check_is_stream(address: str, response: httpx.Response) -> None:
    kind = response.headers.get("content-type", "text/event-stream").partition(";")[0].strip()
    if kind != "text/event-stream":
        raise unusable_reply_error(address, "no token stream, but something else")


def _events_of_body(address: str, response: httpx.Response, body: bytes) -> list[TokenEvent]:
    return events_of_reply(address, _decoded(body), response.headers.get("x-prompt-tokens"))


def _decoded(body: bytes | str) -> object:
    try:
        found: object = json.loads(body)
    except ValueError:
        return None
    return found


def _retrying(retries: int) -> dict[str, Any]:
    from tenacity import retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

    return {
        "stop": stop_after_attempt(retries + 1),
        "wait": wait_exponential_jitter(initial=1, max=30),
        "retry": retry_if_exception_type((ModelUnavailableError, ModelOverloadedError)),
        "reraise": True,
    }
