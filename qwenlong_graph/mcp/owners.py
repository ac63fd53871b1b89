"""Whose a run is: the local user's, or that of whoever holds the token it was made with.

All runs lie in one place, so that the command line lists, resumes and removes those of every
token. A record names its token by a salted hash: it tells nothing, and no two runs look alike.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LOCAL", "Owner", "identity_of"]

_SALT_BYTES = 16


def identity_of(token: str) -> str:
    """What stands for a token inside this process."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class Owner:
    """Who asks. `identity` is that of a token, None for the local user, to whom all belongs."""

    identity: str | None = field(repr=False)

    def owns(self, record: Mapping[str, Any]) -> bool:
        """Whether the run of that record is theirs."""
        if self.identity is None:
            return True
        salt, _, digest = str(record.get("owner", "")).partition(":")
        return hmac.compare_digest(self._digest(salt).encode(), digest.encode("utf-8", "replace"))

    def mark(self) -> str | None:
        """What a run of theirs keeps; None for the local user's."""
        if self.identity is None:
            return None
        salt = secrets.token_hex(_SALT_BYTES)
        return f"{salt}:{self._digest(salt)}"

    def _digest(self, salt: str) -> str:
        key = salt.encode("utf-8", "replace")
        return hmac.new(key, str(self.identity).encode(), hashlib.sha256).hexdigest()


LOCAL = Owner(None)
"""Standard input and output, and the command line."""
