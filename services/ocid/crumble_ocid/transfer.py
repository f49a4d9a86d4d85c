"""HTTP as an image tool needs it: bounded, patient with servers that fail, not with those that hang.

Nothing is believed of a server: bodies are counted against a limit or the size a digest came with,
redirects are few and take no credentials to another origin, no answer may take for ever. Failures that
may pass (connection lost, 429, 5xx) are tried again with growing pauses. Raises RemoteError.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin, urlsplit

from crumble_common.errors import RemoteError
from crumble_ocid.digest import hasher
from crumble_ocid.files import commit
from crumble_ocid.progress import QUIET, Reporter, Step
from crumble_ocid.store import Store

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT = 10.0
READ_TIMEOUT = 30.0
_ATTEMPTS = 4  # in a row without progress
_PROGRESS = 1 << 14  # bytes an attempt must bring to count as progress
_PAUSE = 0.5  # seconds before the second attempt; doubles
_LONGEST_PAUSE = 30.0  # the most of a Retry-After that is waited for
_REDIRECTS = 5
# A server that trickles is as good as hung: less than this in a window ends the download.
_SLOW_WINDOW = 60.0
_SLOW_BYTES = 16 << 10
_CHUNK = 1 << 18
_SIZE = re.compile(r"[0-9]{1,18}")
_ERRNO = re.compile(r"\[Errno -?\d+\] ")
_PRIVATE_HEADERS = ("authorization", "cookie", "proxy-authorization")

T = TypeVar("T")
Headers = Mapping[str, str]
Opener = Callable[[Headers], contextlib.AbstractContextManager["httpx.Response"]]


class TransientError(RemoteError):
    """A failure that may pass. after: seconds the server asks to wait. spent: all patience is used."""

    after: float = 0.0
    spent: bool = False


def host_of(url: str) -> str:
    """The host and port of an address, for people: without the credentials some have in them."""
    return urlsplit(url).netloc.rpartition("@")[2]


def is_loopback(host: str) -> bool:
    """True for this machine's own names and addresses."""
    return host in ("localhost", "::1") or host.startswith("127.") or host.endswith(".localhost")


class Transport:
    """A pool of connections. One for all threads of a service."""

    def __init__(self, read_timeout: float = 0.0) -> None:
        self._read_timeout = read_timeout or _patience()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._made: httpx.Client | None = None

    def _client(self) -> httpx.Client:
        import httpx  # takes 150 ms, and a cached image needs none of it

        with self._lock:
            if self._made is None:
                timeout = httpx.Timeout(self._read_timeout, connect=CONNECT_TIMEOUT)
                direct = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}
                limits = httpx.Limits(max_connections=32, max_keepalive_connections=16)
                self._made = httpx.Client(timeout=timeout, limits=limits, mounts=direct)
            return self._made

    def abort(self) -> None:
        """Breaks all connections off: whoever waits for one gets a TransientError at once."""
        for used in tuple(self._sockets):
            with contextlib.suppress(OSError):
                used.shutdown(socket.SHUT_RDWR)

    def _trace(self, event: str, info: dict[str, Any]) -> None:
        """Told by httpcore what happens to a request: takes note of the sockets that are made."""
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._sockets.add(info["return_value"].get_extra_info("socket"))

    def close(self) -> None:
        """Closes all connections."""
        with self._lock:
            if self._made is not None:
                self._made.close()
                self._made = None

    @contextlib.contextmanager
    def open(
        self,
        url: str,
        headers: Headers | None = None,
        method: str = "GET",
        data: bytes | None = None,
    ) -> Iterator[httpx.Response]:
        """One request and its streamed response, redirects followed; raises TransientError.

        Answers other than 429 and 5xx are the caller's to judge.
        """
        import httpx

        host = host_of(url)
        base = {"Accept-Encoding": "identity", "User-Agent": "crumble", **(headers or {})}
        try:
            for _ in range(_REDIRECTS + 1):
                request = self._client().build_request(
                    method, url, headers=base, content=data, extensions={"trace": self._trace}
                )
                response = self._client().send(request, stream=True)
                try:
                    target = response.headers.get("location")
                    if not response.is_redirect or target is None:
                        _raise_for_busy(response, host)
                        yield response
                        return
                    url, base = _redirect(url, target, base)
                finally:
                    response.close()
        except httpx.TimeoutException:
            late = _transient(f"{host} did not answer in time.")
            late.spent = True
            raise late from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            why = _ERRNO.sub("", str(error)) or type(error).__name__
            raise _transient(f"Cannot talk to {host}: {why}.") from None
        raise RemoteError(
            f"{host} redirects in circles.",
            code="remote.redirect",
            hint="Check the image's name, or ask who runs the server.",
        )

    def get(
        self, url: str, limit: int, headers: Headers | None = None, reporter: Reporter = QUIET
    ) -> bytes | None:
        """A small body; None when there is none (404). Raises RemoteError."""

        def attempt() -> bytes | None:
            with self.open(url, headers) as response:
                if response.status_code == 404:
                    return None
                require_ok(response)
                return read_body(response, limit)

        return self.retry(attempt, reporter)

    def retry(self, attempt: Callable[[], T], reporter: Reporter = QUIET) -> T:
        """Runs `attempt` until it raises no TransientError, a few times."""
        for count in range(1, _ATTEMPTS):
            try:
                return attempt()
            except TransientError as error:
                if error.spent:
                    raise
                reporter.wait(_pause(count, error))
        return attempt()


def _patience() -> float:
    """Seconds a server may take for its next bytes: $CRUMBLE_NETWORK_TIMEOUT, where that is a number."""
    try:
        chosen = float(os.environ.get("CRUMBLE_NETWORK_TIMEOUT", ""))
    except ValueError:
        return READ_TIMEOUT
    return chosen if 0 < chosen < 1e6 else READ_TIMEOUT


def _pause(count: int, error: TransientError) -> float:
    """Seconds before attempt `count` + 1."""
    return min(max(error.after, _PAUSE * float(2 ** (count - 1))), _LONGEST_PAUSE)


def require_ok(response: httpx.Response) -> None:
    """Raises RemoteError for anything but success."""
    if not response.is_success:
        raise RemoteError(
            f"{response.url.host} answers {response.status_code} {response.reason_phrase} "
            f"for {response.url.path}.",
            code="remote.status",
            status=response.status_code,
            hint="Check the image's name, and that you may use it.",
        )


def read_body(response: httpx.Response, limit: int) -> bytes:
    """A whole body; raises RemoteError "remote.too_large" over `limit` bytes, without reading it."""
    host, announced = response.url.host, response.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise _too_large(host, limit)
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > limit:
            raise _too_large(host, limit)
    return bytes(body)


def fetch_blob(store: Store, digest: str, size: int, open_from: Opener, step: Step) -> None:
    """Downloads a blob into the store unless it is there, resuming what was begun.

    Whoever else downloads the same waits for the first. `open_from` makes the request with the headers
    given (a Range). size: what it must have, in bytes.
    """
    name = f"{digest.replace(':', '-')}.partial"
    with store.work(name, lambda: store.has_blob(digest), step.peek, keep=True) as right:
        if right is None:
            step.add(size)
            return
        file, temporary = right
        Download(digest, size, open_from, step).run(file)
        commit(file, temporary, store.blob_path(digest))


class Download:
    """One body of known size and digest into an open file, which may hold its beginning."""

    def __init__(self, digest: str, size: int, open_from: Opener, step: Step) -> None:
        self._open_from, self._step = open_from, step
        self._digest, self._size = digest, size
        self._hash = hasher(digest)
        self._done = 0

    def run(self, file: IO[bytes]) -> None:
        """Raises RemoteError; what is in the file then can be resumed, unless its digest was wrong."""
        self._take_up(file)
        resumed, failures, furthest = self._done > 0, 0, self._done
        while self._done < self._size:
            try:
                self._receive(file)
            except TransientError as error:
                # What came before, too, is none: a server that begins anew for ever has to end.
                failures = 0 if self._done >= furthest + _PROGRESS else failures + 1
                furthest = max(furthest, self._done)
                if failures >= _ATTEMPTS or (error.spent and failures):
                    raise
                self._step.reporter.wait(_pause(max(failures, 1), error))
        if self._hash.hexdigest() == self._digest.partition(":")[2]:
            return
        self._restart(file)
        if resumed:  # what an earlier run had left may have been bad: once more, from nothing
            self.run(file)
            return
        raise RemoteError(
            f"The content that came for {self._digest} has another digest.",
            code="remote.digest",
            hint="The server or something on the way damages it; try again later.",
        )

    def _take_up(self, file: IO[bytes]) -> None:
        if file.seek(0, 2) > self._size:
            self._restart(file)
        file.seek(0)
        while chunk := file.read(_CHUNK):
            self._hash.update(chunk)
            self._done += len(chunk)
        self._step.add(self._done)

    def _restart(self, file: IO[bytes]) -> None:
        file.truncate(0)
        self._step.add(-self._done)
        self._done = 0
        self._hash = hasher(self._digest)

    def _receive(self, file: IO[bytes]) -> None:
        headers = {"Range": f"bytes={self._done}-"} if self._done else {}
        with self._open_from(headers) as response:
            if response.status_code == 416:
                self._restart(file)
                raise _transient(
                    f"{response.url.host} has less than the {self._size} bytes promised."
                )
            require_ok(response)
            self._require_size(response)
            if self._done and not self._resumes(response):
                self._restart(file)
            self._copy(file, response)
        if self._done < self._size:
            raise _transient(f"{response.url.host} ended a download early.")

    def _resumes(self, response: httpx.Response) -> bool:
        start = f"bytes {self._done}-"
        return response.status_code == 206 and response.headers.get("content-range", "").startswith(
            start
        )

    def _require_size(self, response: httpx.Response) -> None:
        """Another size is another content: to ask again for the rest would bring nothing."""
        whole = response.headers.get("content-range", "").rpartition("/")[2]
        if response.status_code == 200 and "transfer-encoding" not in response.headers:
            whole = response.headers.get("content-length", "")
        if _SIZE.fullmatch(whole) and int(whole) != self._size:
            raise RemoteError(
                f"{response.url.host} has {int(whole)} bytes where {self._size} should be.",
                code="remote.length",
                hint="The image or the server is faulty; try again, or ask who runs it.",
            )

    def _copy(self, file: IO[bytes], response: httpx.Response) -> None:
        window, arrived = time.monotonic(), 0
        for chunk in response.iter_raw():
            if self._done + len(chunk) > self._size:
                self._restart(file)
                raise RemoteError(
                    f"{response.url.host} sends more than the {self._size} bytes there should be.",
                    code="remote.length",
                    hint="The image or the server is faulty; try again, or ask who runs it.",
                )
            file.write(chunk)
            self._hash.update(chunk)
            self._done += len(chunk)
            arrived += len(chunk)
            self._step.add(len(chunk))
            if (now := time.monotonic()) - window > _SLOW_WINDOW:
                if arrived < _SLOW_BYTES:
                    raise RemoteError(
                        f"{response.url.host} sends too slowly to go on.",
                        code="remote.slow",
                        hint="Try again; the download goes on where it stopped.",
                    )
                window, arrived = now, 0


def _redirect(url: str, target: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The next address, and the headers it may see."""
    found = urljoin(url, target)
    old, new = urlsplit(url), urlsplit(found)
    if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
        raise RemoteError(
            f"{host_of(url)} redirects to an address that is not secure.",
            code="remote.redirect",
            hint="Ask who runs the server.",
        )
    if (old.scheme, old.netloc) != (new.scheme, new.netloc):
        headers = {k: v for k, v in headers.items() if k.lower() not in _PRIVATE_HEADERS}
    return found, headers


def _raise_for_busy(response: httpx.Response, host: str) -> None:
    if response.status_code == 429 or response.status_code >= 500:
        error = _transient(f"{host} answers {response.status_code} {response.reason_phrase}.")
        after = response.headers.get("retry-after", "")
        error.after = float(after) if after.isdigit() else 0.0
        raise error


def _transient(message: str) -> TransientError:
    return TransientError(
        message, code="remote.unreachable", hint="Check the network and try again."
    )


def _too_large(host: str, limit: int) -> RemoteError:
    return RemoteError(
        f"{host} sends more than {limit} bytes where a small answer should come.",
        code="remote.too_large",
        hint="It is no registry, or a faulty one; check the image's name.",
    )
