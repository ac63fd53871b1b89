"""Every error this package raises on purpose.

    QwenLongGraphError
    ├── SetupError                    exit 2   settings, extras, servers, models that cannot be had
    │   ├── SettingsError                      a setting contradicts another, or the window
    │   ├── WindowTooSmallError                the model's window is below the stated minimum
    │   ├── QuestionError                      empty, or too long for the window
    │   ├── MissingExtraError                  an optional dependency is not installed
    │   ├── ModelFetchError                    a model file could not be downloaded or verified
    │   ├── ConnectionSetupError               nothing usable answers at the given address
    │   └── CheckpointerKindError              a sync checkpointer in an async call, or the reverse
    ├── DocumentError                 exit 3   a document cannot be read (carries `.source`)
    │   ├── DocumentNotFoundError
    │   ├── DocumentNotAllowedError            outside the directories that a model may name
    │   ├── EmptyDocumentError                 no bytes, or nothing but white space
    │   ├── BinaryDocumentError                not text, and no format we can read
    │   ├── EncryptedDocumentError             needs a password
    │   ├── CorruptDocumentError               its own format's reader refuses it
    │   ├── ScannedDocumentError               pages without a text layer
    │   ├── NoDocumentsError                   nothing was given, or a directory without text
    │   ├── DocumentTooLargeError              strategy "full" on what does not fit the window
    │   └── StoredTextChangedError             a file of the store is not what its name says
    ├── ModelError                    exit 4   the model's server failed us
    │   ├── ModelUnavailableError              refused, timed out, 5xx, restarting: worth a retry
    │   ├── ModelOverloadedError               429 or a full queue: worth a retry, later
    │   ├── ModelRefusedError                  4xx: the same request will fail again
    │   ├── ContextOverflowError               the prompt is longer than the window
    │   └── MalformedReplyError                no usable reply after all attempts
    └── RunError                      exit 5   a kept run cannot go on as asked
        ├── RunNotFoundError                   no such run, or several that begin so
        ├── RunLockedError                     another process is working on it
        ├── RunPausedError            exit 6   it waits for a person's review
        ├── RunFormatError                     made by a newer version, damaged, or not a run
        ├── RunChangedError                    begun with another model, protocol or sizes
        └── RunInterruptedError       exit 130

`exit_code` is what the command line exits with. Messages say what was being done, to what, what
was found, and what to do next; they never hold document text.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BinaryDocumentError",
    "CheckpointerKindError",
    "ConnectionSetupError",
    "ContextOverflowError",
    "CorruptDocumentError",
    "DocumentError",
    "DocumentNotAllowedError",
    "DocumentNotFoundError",
    "DocumentTooLargeError",
    "EmptyDocumentError",
    "EncryptedDocumentError",
    "MalformedReplyError",
    "MissingExtraError",
    "ModelError",
    "ModelFetchError",
    "ModelOverloadedError",
    "ModelRefusedError",
    "ModelUnavailableError",
    "NoDocumentsError",
    "QuestionError",
    "QwenLongGraphError",
    "RunChangedError",
    "RunError",
    "RunFormatError",
    "RunInterruptedError",
    "RunLockedError",
    "RunNotFoundError",
    "RunPausedError",
    "ScannedDocumentError",
    "SettingsError",
    "SetupError",
    "StoredTextChangedError",
    "WindowTooSmallError",
]


class QwenLongGraphError(Exception):
    """The root: catch this to catch everything this package raises on purpose."""

    exit_code: ClassVar[int] = 1


class SetupError(QwenLongGraphError):
    """Something must be set up differently before any reading can start."""

    exit_code = 2


class SettingsError(SetupError):
    """A setting is out of range, contradicts another, or does not fit the window."""


class WindowTooSmallError(SetupError):
    """The model's context window is too small to read with."""


class QuestionError(SetupError):
    """The question is empty, or leaves no room in the window."""


class MissingExtraError(SetupError):
    """An optional dependency is missing; the message names the extra to install."""

    def __init__(self, feature: str, extra: str) -> None:
        self.extra = extra
        super().__init__(
            f"{feature} needs an optional dependency. "
            f"Install it with: pip install 'qwenlong-graph[{extra}]'"
        )


class ModelFetchError(SetupError):
    """A model file could not be downloaded, or is not the file it should be."""


class ConnectionSetupError(SetupError):
    """No usable server, of a model or a database, answers at the given address."""


class CheckpointerKindError(SetupError):
    """The checkpointer cannot serve this kind of call (sync or async)."""


class DocumentError(QwenLongGraphError):
    """A document cannot be read. `source` is the path or name the user gave."""

    exit_code = 3

    def __init__(self, message: str, *, source: str = "") -> None:
        self.source = source
        super().__init__(message)


class DocumentNotFoundError(DocumentError):
    """There is no such file, or it may not be opened."""


class DocumentNotAllowedError(DocumentError):
    """A model or client named what lies outside the directories that it may read."""


class EmptyDocumentError(DocumentError):
    """The document holds no bytes, or nothing but white space."""


class BinaryDocumentError(DocumentError):
    """The file is neither text nor a format this package reads."""


class EncryptedDocumentError(DocumentError):
    """The document needs a password."""


class CorruptDocumentError(DocumentError):
    """The document's own format is broken."""


class ScannedDocumentError(DocumentError):
    """The document has pages but no text layer: run OCR on it first."""


class NoDocumentsError(DocumentError):
    """There is nothing to read."""


class DocumentTooLargeError(DocumentError):
    """The document does not fit in one pass; read it with strategy "memory"."""


class StoredTextChangedError(DocumentError):
    """A file of the document store is missing or its content is not what its name says."""


class ModelError(QwenLongGraphError):
    """The model or its server failed. The work done so far is kept by the checkpointer."""

    exit_code = 4


class ModelUnavailableError(ModelError):
    """The server refused, timed out, broke off, or answered 5xx: a retry may help."""


class ModelOverloadedError(ModelError):
    """The server is over its limit (429 or a full queue): a later retry may help."""


class ModelRefusedError(ModelError):
    """The server refused the request (4xx): the same request will be refused again."""


class ContextOverflowError(ModelError):
    """The prompt is longer than the model's window."""


class MalformedReplyError(ModelError):
    """The model gave no usable reply, after all attempts."""


class RunError(QwenLongGraphError):
    """A kept run cannot go on as asked."""

    exit_code = 5


class RunNotFoundError(RunError):
    """There is no such run, or more than one begins with what was given."""


class RunLockedError(RunError):
    """Another process is working on the run; the message says which."""


class RunPausedError(RunError):
    """The run waits for a person's review; the message says how to go on."""

    exit_code = 6


class RunFormatError(RunError):
    """The run was made by a newer version, is damaged, or is not a run at all."""


class RunChangedError(RunError):
    """The run was begun with another model, protocol or sizes; the message says how to go on."""


class RunInterruptedError(RunError):
    """The run was stopped by the user; what was read is kept."""

    exit_code = 130
