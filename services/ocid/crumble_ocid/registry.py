"""A registry, seen from the pulling side (OCI distribution-spec, "Pull")."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from crumble_common.errors import RemoteError, UsageError
from crumble_ocid.auth import Authorizer, denied
from crumble_ocid.digest import digest_bytes, is_digest, matches
from crumble_ocid.manifest import ACCEPT, MAX_MANIFEST, Descriptor
from crumble_ocid.outside import Outside
from crumble_ocid.progress import QUIET, Reporter, Step
from crumble_ocid.reference import DOCKER_HUB, RegistryReference
from crumble_ocid.store import Store
from crumble_ocid.transfer import (
    Headers,
    Transport,
    fetch_blob,
    is_loopback,
    read_body,
    require_ok,
)

if TYPE_CHECKING:
    import httpx


@dataclass(frozen=True)
class Document:
    """A manifest or index as it came: its bytes, their digest, and what the registry calls it."""

    data: bytes
    digest: str
    media_type: str


class Repository:
    """One repository of a registry, and the right to read it."""

    def __init__(
        self,
        transport: Transport,
        reference: RegistryReference,
        insecure: frozenset[str],
        outside: Outside,
    ) -> None:
        self._transport = transport
        self._domain, self._path = reference.domain, reference.path
        host = urlsplit(f"//{self._domain}").hostname or ""
        self._plain = is_loopback(host) or self._domain in insecure
        # Docker Hub's API is not served under its own name.
        server = f"registry-1.{DOCKER_HUB}" if self._domain == DOCKER_HUB else self._domain
        self._server = server
        self._scheme = "http" if self._plain else "https"
        self._authorizer = Authorizer(
            transport, self._domain, self._path, outside, insecure=self._domain in insecure
        )

    def manifest(self, selector: str, reporter: Reporter = QUIET) -> Document:
        """The manifest or index a tag or digest names; raises UsageError, RemoteError."""
        return self._transport.retry(lambda: self._manifest(selector), reporter)

    def fetch(self, store: Store, blob: Descriptor, step: Step) -> None:
        """Downloads a blob into the store; raises RemoteError."""

        @contextlib.contextmanager
        def open_from(headers: Headers) -> Iterator[httpx.Response]:
            with self._open(f"blobs/{blob.digest}", headers) as response:
                if response.status_code == 404:
                    raise RemoteError(
                        f"{self._domain} lacks {blob.digest}, a part of {self._path}.",
                        code="registry.blob",
                        hint="The image is incomplete there; push it again.",
                    )
                yield response

        fetch_blob(store, blob.digest, blob.size, open_from, step)

    def _manifest(self, selector: str) -> Document:
        with self._open(f"manifests/{selector}", {"Accept": ACCEPT}) as response:
            if response.status_code == 404:
                name = f"{self._domain}/{self._path}"
                colon = "@" if is_digest(selector) else ":"
                raise UsageError(
                    f"There is no image {name}{colon}{selector}.",
                    code="image.unknown",
                    hint="Check the name and the tag.",
                )
            require_ok(response)
            data = read_body(response, MAX_MANIFEST)
            media_type = response.headers.get("content-type", "")
        if is_digest(selector):
            if not matches(data, selector):
                raise RemoteError(
                    f"{self._domain} answers with another manifest than {selector}.",
                    code="remote.digest",
                    hint="The registry is not to be trusted, or damaged.",
                )
            return Document(data, selector, media_type)
        return Document(data, digest_bytes(data), media_type)

    @contextlib.contextmanager
    def _open(self, what: str, headers: Headers) -> Iterator[httpx.Response]:
        """An authorized request; the first 401 is answered."""
        url = f"{self._scheme}://{self._server}/v2/{self._path}/{what}"
        granted = self._authorizer.header()
        with self._transport.open(url, {**headers, **granted}) as response:
            if response.status_code != 401:
                self._check(response)
                yield response
                return
            challenge = ", ".join(response.headers.get_list("www-authenticate"))
        self._authorizer.answer(challenge, granted.get("Authorization", ""))
        with self._transport.open(url, {**headers, **self._authorizer.header()}) as response:
            self._check(response)
            yield response

    def _check(self, response: httpx.Response) -> None:
        if response.status_code in (401, 403):
            raise denied(self._domain, self._path, known=True)
