"""A model's tokenizer in this process: counting without a server, and proof that both agree."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwenlong_graph.errors import SettingsError
from qwenlong_graph.models.tgi_prompt import ChatTemplate

__all__ = [
    "COMMON_SPECIAL_TOKENS",
    "PROBE_TEXT",
    "TWICE_PROBED",
    "LocalTokenizer",
    "load_tokenizer",
    "template_markers",
]

_LISTED = """
    <|im_start|> <|im_end|> <|endoftext|> <s> </s> <pad> <unk> <bos> <eos> <|eot_id|> <|eom_id|>
    <|start_header_id|> <|end_header_id|> <|begin_of_text|> <|end_of_text|> <|python_tag|>
    <start_of_turn> <end_of_turn> [INST] [/INST] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]
    [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS]
    <|system|> <|user|> <|assistant|> <|observation|> <|end|> <|start|> <|message|> <|channel|>
    <|return|> <|call|> <|constrain|> <|endofprompt|> <｜User｜> <｜Assistant｜>
    <｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|>
    <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> <|quad_end|>
    <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
    <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
    <tool_call> </tool_call> <tool_response> </tool_response> <think> </think>
    <repo_name> <reponame> <file_sep> <filename> <gh_stars> <issue_start> <issue_comment>
    <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output>
    <jupyter_script> <empty_output>
"""
COMMON_SPECIAL_TOKENS: tuple[str, ...] = tuple(_LISTED.split())
"""Strings that the chat templates and tokenizers of common models treat as control tokens."""

PROBE_TEXT = (
    "The 3 lamps cost 1,234.50 € (net);\n\n\tdef f(x): return x**2  # naïve\r\n"
    "cafe\u0301 «Привет, мир!» مرحبا 灯台は明るい。한국어 🗼👩‍🚒 http://a.example/?q=%20\n"
    "| a | b |\n|---|---|\n    indented — “quoted” … İstanbul ﬁn"
)
"""A text that tokenizers disagree on: scripts, digits, spaces, line ends, composed characters."""

TWICE_PROBED = f"{PROBE_TEXT}\n{PROBE_TEXT}"

# What looks like a control token in a chat template: <|im_end|>, <start_of_turn>, [INST].
_MARKER = re.compile(r"<[^<>\s]{1,48}>|\[/?[A-Za-z_]{2,24}\]")


def template_markers(template: str) -> list[str]:
    """What looks like a control token in the text of a chat template."""
    return _MARKER.findall(template)


class LocalTokenizer:
    """The tokenizer and chat template of a model folder or hub id; for use from several threads.

    A hub id is taken from the local cache, else downloaded (the tokenizer's files only);
    `HF_HUB_OFFLINE=1` forbids that. No code of the model's repository is run. Raises
    `SettingsError` where there is no tokenizer, or it has no chat template.
    """

    def __init__(self, source: str, *, gguf_file: str | None = None) -> None:
        from langchain_core.messages import HumanMessage

        self.source = source
        self._tokenizer = load_tokenizer(source, gguf_file=gguf_file)
        self.folder = _folder_of(source)
        """Where its files are, from where they can be loaded without asking the hub."""
        template = ChatTemplate(self._tokenizer, source=source)
        self.special_tokens = _special_tokens(self._tokenizer)
        """Strings that the tokenizer reads as control tokens wherever they stand."""
        prompt = template.render([HumanMessage("x")])
        self.template_tokens = template.count_prompt(prompt) - template.count("x")
        """What the chat template adds to one message."""
        self._with_start = len(self._tokenizer.encode(PROBE_TEXT))
        self._backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            # From here on it only counts, and text is text, whatever it looks like.
            self._backend.encode_special_tokens = True

    def count(self, text: str) -> int:
        """The number of tokens of raw text; special tokens in it are read as plain text."""
        if self._backend is None:
            return len(self._tokenizer.encode(text, add_special_tokens=False))
        return len(self._backend.encode(text, add_special_tokens=False).ids)

    def check_agreement(self, url: str, counted: int, *, probes_twice: bool = False) -> None:
        """Raises `SettingsError` unless a server's count of the probe is this tokenizer's.

        The server may have put a beginning-of-text token before it. `probes_twice`: what a second
        probe adds was counted.
        """
        alone = self.count(PROBE_TEXT)
        expected = {self.count(TWICE_PROBED) - alone} if probes_twice else {alone, self._with_start}
        if counted not in expected:
            raise SettingsError(
                f"The tokenizer of {self.source} makes {min(expected)} tokens of a text of which "
                f"the server at {url} makes {counted}: it is not that of the model served there. "
                "Pass the folder or hub id of that very model as tokenizer, or in "
                "QWENLONG_GRAPH_TOKENIZER."
            )


def load_tokenizer(source: str, *, gguf_file: str | None = None) -> Any:
    """transformers' tokenizer of a model folder or hub id; what is cached is taken unasked.

    Raises `SettingsError`.
    """
    from transformers import AutoTokenizer

    loader: Any = AutoTokenizer
    options = {"gguf_file": gguf_file} if gguf_file else {}
    cached = None
    if not Path(source).is_dir():
        with contextlib.suppress(Exception):
            cached = loader.from_pretrained(source, local_files_only=True, **options)
        # Without a template, perhaps not all of its files are cached.
        if cached is not None and cached.chat_template:
            return cached
    try:
        return loader.from_pretrained(source, **options)
    except Exception as error:  # tokenizers raises it bare for a broken file
        if cached is not None:
            return cached
        raise SettingsError(
            f"Loading the tokenizer of {source} failed ({type(error).__name__}). Pass the folder "
            "that holds the model's tokenizer.json and tokenizer_config.json, or its hub id, as "
            "tokenizer, or in QWENLONG_GRAPH_TOKENIZER."
        ) from error


def _folder_of(source: str) -> str:
    """Where the tokenizer's files lie, once they are loaded."""
    if Path(source).is_dir():
        return source
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "tokenizer_config.json")
    return str(Path(found).parent) if isinstance(found, str) else source


def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    added = tokenizer.added_tokens_decoder.values()
    # Others that were added are words, or white space, unless the template uses them.
    markers = {*COMMON_SPECIAL_TOKENS, *template_markers(str(tokenizer.chat_template))}
    found: Iterable[str] = (
        *(token.content for token in added if token.special or token.content in markers),
        *map(str, tokenizer.all_special_tokens),
    )
    return tuple(dict.fromkeys(token for token in found if token.strip()))
