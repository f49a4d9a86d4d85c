"""A registry on loopback that misbehaves on request, with images made of archives.

It speaks what pulling needs of the OCI distribution-spec: manifests, blobs with ranges, bearer and basic
authorization, redirects. A fault is set for a path: `registry.faults["/blobs/sha256:…"] = Fault("cut")`.

    hang         accepts the request and never answers
    stall        sends half of the body, then nothing more
    cut          announces the whole body, sends half, closes
    short        announces and sends half
    long         sends more than there is
    corrupt      flips a byte
    endless      a body without a length that does not end
    huge         announces 100 MB
    busy         503
    limited      429 with Retry-After: 0
    missing      404
    redirect     to `argument`
    trickle      one byte, again and again, slowly
    reset        closes without an answer
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from framework.registry_archives import Item, sha256, tar

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass
class Fault:
    """A misbehaviour; ends after `times` requests."""

    kind: str
    times: int = 1 << 30
    argument: str = ""


@dataclass
class Blob:
    """What is served at a path."""

    data: bytes
    type: str = "application/octet-stream"


def encode(document: Any) -> bytes:
    return json.dumps(document).encode()


@dataclass
class Parts:
    """An image's documents and layers, before anything serves them."""

    manifest: bytes
    config: bytes
    layers: list[bytes]

    @property
    def digest(self) -> str:
        return sha256(self.manifest)

    def descriptor(self, **platform: str) -> dict[str, Any]:
        return {
            "mediaType": MANIFEST,
            "digest": self.digest,
            "size": len(self.manifest),
            "platform": platform or {"os": "linux", "architecture": "riscv64"},
        }


def make_image(
    *layers: bytes,
    diff_ids: list[str] | None = None,
    architecture: str = "riscv64",
    suffix: str = "",
    **run: Any,
) -> Parts:
    """An image of (compressed) layer archives. diff_ids: when they are not the layers' own digests.

    suffix: of the layers' media type, "+gzip".
    """
    archives = layers or (tar(Item("etc/hello", b"hello\n")),)
    config = encode(
        {
            "os": "linux",
            "architecture": architecture,
            "created": "2026-01-02T03:04:05Z",
            "config": run or {"Env": ["A=b"], "Cmd": ["sh"], "WorkingDir": "/w", "User": "1:2"},
            "rootfs": {
                "type": "layers",
                "diff_ids": diff_ids or [sha256(item) for item in archives],
            },
        }
    )
    described = [
        {"mediaType": LAYER + suffix, "digest": sha256(a), "size": len(a)} for a in archives
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": sha256(config), "size": len(config)},
        "layers": described,
    }
    return Parts(encode(manifest), config, list(archives))


@dataclass
class Registry:
    """The served content and what was asked. token: required as a bearer; basic: "user:password"."""

    blobs: dict[str, Blob] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    basic: str = ""
    token: str = ""
    token_answer: dict[str, Any] | None = None
    port: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add(self, parts: Parts, name: str = "test/image", tag: str = "latest") -> str:
        """Serves an image; returns its reference."""
        self.put(f"/v2/{name}/manifests/{tag}", parts.manifest, MANIFEST)
        self.put(f"/v2/{name}/manifests/{parts.digest}", parts.manifest, MANIFEST)
        for data in (parts.config, *parts.layers):
            self.put(f"/v2/{name}/blobs/{sha256(data)}", data)
        return f"{self.host}/{name}:{tag}"

    def add_index(
        self, images: dict[str, Parts], name: str = "test/image", tag: str = "latest"
    ) -> str:
        """Serves an index of images by platform ("linux/arm/v7")."""
        items = []
        for platform, parts in images.items():
            self.add(parts, name, parts.digest)
            keys = ("os", "architecture", "variant")
            items.append(parts.descriptor(**dict(zip(keys, platform.split("/"), strict=False))))
        data = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": items})
        self.put(f"/v2/{name}/manifests/{tag}", data, INDEX)
        return f"{self.host}/{name}:{tag}"

    def put(self, path: str, data: bytes, kind: str = "application/octet-stream") -> None:
        """Serves bytes at a path."""
        self.blobs[path] = Blob(data, kind)

    def count(self, part: str) -> int:
        """How many requests had `part` in their path."""
        return sum(part in path for _, path, _ in self.requests)

    def fault_for(self, path: str) -> Fault | None:
        """The fault that applies now."""
        for part, fault in self.faults.items():
            if part in path and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", "0"))
        self.rfile.read(length)
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.registry.requests.append((self.command, self.path, dict(self.headers)))
        if path == "/token":
            self._token()
        elif not self._authorized():
            self._refuse()
        elif fault := self.registry.fault_for(path):
            getattr(self, f"_{fault.kind}")(path, fault)
        else:
            self._serve(path)

    def _authorized(self) -> bool:
        given = self.headers.get("Authorization", "")
        registry = self.registry
        if registry.token:
            return given == f"Bearer {registry.token}"
        if registry.basic:
            return given == "Basic " + base64.b64encode(registry.basic.encode()).decode()
        return True

    def _refuse(self) -> None:
        realm = f"http://{self.registry.host}/token"
        bearer = f'Bearer realm="{realm}",service="test",scope="repository:test/image:pull"'
        self._answer(
            401, b"", {"WWW-Authenticate": bearer if self.registry.token else 'Basic realm="x"'}
        )

    def _token(self) -> None:
        basic = self.registry.basic
        given = self.headers.get("Authorization", "")
        if basic and given != "Basic " + base64.b64encode(basic.encode()).decode():
            self._answer(401, b"")
            return
        answer = self.registry.token_answer
        self._answer(200, encode({"token": self.registry.token} if answer is None else answer))

    def _serve(self, path: str) -> None:
        blob = self.registry.blobs.get(path)
        if blob is None:
            self._answer(404, b"{}")
            return
        data, status, extra = blob.data, 200, {"Content-Type": blob.type}
        if (given := self.headers.get("Range", "")).startswith("bytes="):
            start = int(given[6:].partition("-")[0])
            if start >= len(data):
                self._answer(416, b"")
                return
            extra["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        self._answer(status, data, extra)

    def _answer(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str] | None = None,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(data)

    def _data(self, path: str) -> bytes:
        data = self.registry.blobs[path].data
        if (given := self.headers.get("Range", "")).startswith("bytes="):
            return data[int(given[6:].partition("-")[0]) :]
        return data

    def _hang(self, path: str, fault: Fault) -> None:
        self.registry.released.wait(60)
        self.close_connection = True

    def _stall(self, path: str, fault: Fault) -> None:
        self._cut(path, fault)
        self._hang(path, fault)

    def _cut(self, path: str, fault: Fault) -> None:
        blob = self.registry.blobs[path]
        data = self._data(path)
        start = len(blob.data) - len(data)
        status, extra = (200, {}) if not start else (206, {"Content-Range": f"bytes {start}-"})
        self._answer(status, data[: len(data) // 2], extra, length=len(data))
        self.close_connection = True

    def _short(self, path: str, fault: Fault) -> None:
        data = self._data(path)
        self._answer(200, data[: len(data) // 2])

    def _long(self, path: str, fault: Fault) -> None:
        self._answer(200, self._data(path) + b"more")

    def _corrupt(self, path: str, fault: Fault) -> None:
        blob = self.registry.blobs[path]
        data = bytearray(blob.data)
        data[len(data) // 2] ^= 0xFF
        self._answer(200, bytes(data), {"Content-Type": blob.type})

    def _endless(self, path: str, fault: Fault) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with contextlib.suppress(OSError):
            while not self.registry.released.is_set():
                self.wfile.write(piece)
        self.close_connection = True

    def _huge(self, path: str, fault: Fault) -> None:
        self._answer(200, b"{", length=100 << 20)
        self._hang(path, fault)

    def _trickle(self, path: str, fault: Fault) -> None:
        self._answer(200, b"", length=len(self._data(path)))
        with contextlib.suppress(OSError):
            while not self.registry.released.wait(0.02):
                self.wfile.write(b"x")
        self.close_connection = True

    def _busy(self, path: str, fault: Fault) -> None:
        self._answer(503, b"")

    def _limited(self, path: str, fault: Fault) -> None:
        self._answer(429, b"", {"Retry-After": "0"})

    def _missing(self, path: str, fault: Fault) -> None:
        self._answer(404, b"")

    def _redirect(self, path: str, fault: Fault) -> None:
        self._answer(307, b"", {"Location": fault.argument or path})

    def _reset(self, path: str, fault: Fault) -> None:
        self.close_connection = True
        self.connection.close()


@contextlib.contextmanager
def running_registry(**settings: Any) -> Iterator[Registry]:
    """A registry that serves until the block ends."""
    registry = Registry(**settings)
    handler = type("Handler", (_Handler,), {"registry": registry})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up on purpose
    registry.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield registry
    finally:
        registry.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
