"""A model server at an address, asked what it is: one place for key, certificates and redirects."""

from __future__ import annotations

import ssl
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qwenlong_graph.errors import ConnectionSetupError, SettingsError
from qwenlong_graph.models.tgi_wire import checked_address

if TYPE_CHECKING:
    import httpx

__all__ = ["CONNECT_TIMEOUT_S", "Server", "direct_mounts", "is_address", "json_object"]

PROBE_TIMEOUT_S = 30
CONNECT_TIMEOUT_S = 10

_NOT_READY = frozenset({429, 500, 502, 503, 504})


def is_address(target: str) -> bool:
    """Whether a target of `connect` is a server's address, and not a model in this process."""
    return target.startswith(("http://", "https://"))


class Server:
    """Asks a server over one kept pool of connections; may be used from several threads.

    Certificates are verified, and redirects refused: prompts and key would go elsewhere. `url` has
    no `/v1` at its end. Raises `SettingsError` where `url` is no server's address.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        import httpx

        # Before anything that quotes the address: it would quote the password too.
        if "@" in url.partition("//")[2].partition("/")[0]:
            raise SettingsError(
                "The address of the server holds a user name or password. "
                "Leave it out, and pass the server's key as api_key."
            )
        self.url = checked_address(url)
        self.api_key = api_key
        self.sent_web_page = False
        """Whether anything it answered was a web page."""
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(PROBE_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            mounts=direct_mounts(self.url),
            follow_redirects=False,
        )
        weakref.finalize(self, self._client.close)

    def json(self, path: str) -> dict[str, Any] | None:
        """The JSON object at `path`, None where the server has no such thing to tell.

        Raises `ConnectionSetupError` where the server cannot be used at all: nothing answers, it
        is not ready, it refuses the key, or it redirects.
        """
        response = self.get(path)
        return None if response is None else json_object(response)

    def get(self, path: str) -> httpx.Response | None:
        """`json`, for answers that are something else."""
        import httpx

        try:
            response = self._client.get(path)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        return self._checked(response)

    def ask(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float = PROBE_TIMEOUT_S
    ) -> httpx.Response:
        """The answer to a POST that may well be refused; raises as `json` does."""
        import httpx

        try:
            response = self.post(path, body, timeout_s=timeout_s)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        self._checked(response)
        return response

    def post(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float = PROBE_TIMEOUT_S
    ) -> httpx.Response:
        """The answer to a POST, whatever its status. Raises httpx's own errors."""
        import httpx

        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        return self._client.post(path, json=body, timeout=timeout)

    def _checked(self, response: httpx.Response) -> httpx.Response | None:
        status = response.status_code
        if response.is_redirect:
            target = response.next_request.url if response.next_request else None
            where = f"{target.scheme}://{target.netloc.decode('ascii')}" if target else "elsewhere"
            raise ConnectionSetupError(
                f"Connecting to {self.url}: it redirects to {where}, which is not followed, "
                "because prompts and key would go there. Where that is right, connect to that "
                "address."
            )
        if status in {401, 403}:
            found = "the server refuses the key" if self.api_key else "the server wants a key"
            raise ConnectionSetupError(
                f"Connecting to {self.url}: {found} (HTTP {status}). Pass the right one as "
                "api_key, or in QWENLONG_GRAPH_API_KEY."
            )
        if status in _NOT_READY:
            raise ConnectionSetupError(
                f"Connecting to {self.url}: the server is not ready (HTTP {status}). "
                "It may still be loading its model: try again later."
            )
        if response.is_error:
            return None
        if response.headers.get("content-type", "").startswith("text/html"):
            self.sent_web_page = True
        return response

    def _unreachable(self, error: httpx.HTTPError) -> ConnectionSetupError:
        import httpx

        name = type(error).__name__
        told = f"Connecting to {self.url}: "
        cause = _ssl_error(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            return ConnectionSetupError(
                f"{told}its certificate is not trusted ({cause.verify_message}). If an authority "
                "of your own has signed it, name the file with that authority's certificate in "
                "the environment variable SSL_CERT_FILE."
            )
        if cause is not None:
            return ConnectionSetupError(
                f"{told}the encrypted connection (TLS) failed ({cause.reason or name}). "
                "If the server speaks plain HTTP, use http:// in its address."
            )
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ConnectionSetupError(
                f"{told}no server answers there ({name}). "
                "Check that it is running, and that address and port are right."
            )
        return ConnectionSetupError(
            f"{told}something is there, but gives no HTTP answer ({name}). Check address and "
            "port, and whether the server wants https:// in its address."
        )


def json_object(response: httpx.Response) -> dict[str, Any] | None:
    """The JSON object that a response holds, None where it holds none."""
    try:
        found = response.json()
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def direct_mounts(url: str) -> dict[str, None]:
    """httpx's `mounts` for a server: a proxy of the environment cannot reach our own loopback."""
    import httpx

    host = httpx.URL(url).host
    name = f"[{host}]" if ":" in host else host
    return {f"all://{name}": None} if _is_loopback(host) else {}


def _is_loopback(host: str) -> bool:
    import ipaddress

    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ssl_error(error: BaseException) -> ssl.SSLError | None:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None
