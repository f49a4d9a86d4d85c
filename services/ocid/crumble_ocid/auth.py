"""Credentials for registries: where users keep them, and the bearer-token flow.

Files: $REGISTRY_AUTH_FILE, ${XDG_RUNTIME_DIR}/containers/auth.json, ~/.config/containers/auth.json,
${DOCKER_CONFIG:-~/.docker}/config.json, with their credential helpers (containers-auth.json(5)). Tokens:
distribution "Token Authentication Specification". Secrets go to the registry they are for, and to the
token server it names over TLS; they are never logged nor part of an error.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from crumble_common.errors import HostError, RemoteError
from crumble_ocid.outside import Outside
from crumble_ocid.reference import DOCKER_HUB
from crumble_ocid.transfer import Transport, is_loopback, read_body

_HUB_KEY = f"https://index.{DOCKER_HUB}/v1/"
_MAX_FILE = 1 << 20
_MAX_TOKEN = 1 << 20
_TOKEN_SECONDS = 60  # a token's life when its server names none (the specification's default)
_PARAMETER = re.compile(r'([a-zA-Z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN_USER = "<token>"  # noqa: S105  what docker and helpers write where the secret is an identity token


@dataclass(frozen=True, repr=False)
class Credentials:
    """A user and a password, or an identity token (OAuth2 refresh token)."""

    user: str = ""
    password: str = ""
    identity_token: str = ""

    @property
    def basic(self) -> str:
        """The value of a basic Authorization header."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Challenge:
    """A WWW-Authenticate header: its scheme in small letters and its parameters."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of a WWW-Authenticate header (RFC 9110 11.6.1)."""
    found: list[Challenge] = []
    starts = list(re.finditer(r"(?:^|,)\s*([A-Za-z]+)(?=\s+[a-zA-Z_]+\s*=|\s*$|\s*,)", header))
    for place, start in enumerate(starts):
        end = starts[place + 1].start() if place + 1 < len(starts) else len(header)
        pairs = _PARAMETER.findall(header[start.end() : end])
        values = {key.lower(): re.sub(r"\\(.)", r"\1", text) or word for key, text, word in pairs}
        found.append(Challenge(start[1].lower(), values))
    return found


def auth_files() -> list[Path]:
    """Files that may hold credentials, the first that has them wins."""
    home = Path.home()
    if chosen := os.environ.get("REGISTRY_AUTH_FILE"):
        return [Path(chosen)]
    found = []
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(runtime) / "containers/auth.json")
    found.append(
        Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json"
    )
    found.append(Path(os.environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json")
    return found


def find_credentials(domain: str, path: str, outside: Outside) -> Credentials | None:
    """The user's credentials for an image's registry; raises HostError for a helper that fails."""
    for file in auth_files():
        config = _load(file)
        keys = list(_keys(domain, path))
        helper = next((h for key in keys if (h := _map(config, "credHelpers").get(key))), None)
        helper = helper or config.get("credsStore")
        if isinstance(helper, str) and (found := _ask_helper(helper, domain, outside)):
            return found
        for key in keys:
            entry = _map(config, "auths").get(key)
            if isinstance(entry, dict) and (found := _decode(entry)):
                return found
    return None


def _keys(domain: str, path: str) -> Iterator[str]:
    """Names an entry may have, the most particular first: with repository prefixes, then the registry."""
    parts = path.split("/")
    for count in range(len(parts), 0, -1):
        yield "/".join((domain, *parts[:count]))
    yield domain
    for scheme in ("https", "http"):
        yield f"{scheme}://{domain}"
        yield from (f"{scheme}://{domain}/{version}/" for version in ("v1", "v2"))
    if domain == DOCKER_HUB:
        yield _HUB_KEY


def _load(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            config = json.loads(opened.read(_MAX_FILE))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _map(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _decode(entry: dict[str, Any]) -> Credentials | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Credentials(identity_token=token)
    try:
        text = base64.b64decode(str(entry.get("auth", "")), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    user, colon, password = text.partition(":")
    return Credentials(user, password.rstrip("\0")) if colon else None


def _ask_helper(name: str, domain: str, outside: Outside) -> Credentials | None:
    """Asks docker-credential-NAME (docker-credential-helpers protocol); None when it knows none."""
    server = _HUB_KEY if domain == DOCKER_HUB else domain
    program = f"docker-credential-{name}"
    try:
        answer = json.loads(outside.run_helper(program, server) or b"{}")
        user, secret = str(answer.get("Username", "")), str(answer.get("Secret", ""))
    except (OSError, subprocess.SubprocessError, ValueError, AttributeError) as error:
        raise HostError(
            f"The credential helper {program} cannot be used ({type(error).__name__}).",
            code="registry.helper",
            hint="Install it, or take it out of your registry credentials file.",
        ) from None
    if not secret:
        return None
    return Credentials(identity_token=secret) if user == _TOKEN_USER else Credentials(user, secret)


class Authorizer:
    """Authorization for one repository: answers challenges and remembers what was granted."""

    def __init__(
        self, transport: Transport, domain: str, path: str, outside: Outside, *, insecure: bool
    ) -> None:
        self._transport = transport
        self._outside = outside
        self._domain, self._path = domain, path
        self._insecure = insecure
        self._lock = threading.Lock()
        self._header = ""
        self._expires = 0.0

    def header(self) -> dict[str, str]:
        """The Authorization header to send, when one is known."""
        with self._lock:
            valid = self._header and time.monotonic() < self._expires
            return {"Authorization": self._header} if valid else {}

    def answer(self, challenge_header: str, used: str) -> None:
        """Gets what a 401 asks for; raises RemoteError when nothing can be got.

        used: the Authorization that was refused: when another thread has a newer one, that is it.
        """
        with self._lock:
            if self._header != used and time.monotonic() < self._expires:
                return
            challenges = {item.scheme: item for item in parse_challenges(challenge_header)}
            credentials = find_credentials(self._domain, self._path, self._outside)
            if "bearer" in challenges:
                self._header, life = self._token(challenges["bearer"], credentials)
                self._expires = time.monotonic() + life
            elif "basic" in challenges and credentials and credentials.basic != used:
                self._header, self._expires = credentials.basic, float("inf")
            else:
                raise denied(self._domain, self._path, known=credentials is not None)

    def _token(self, challenge: Challenge, credentials: Credentials | None) -> tuple[str, float]:
        """A bearer header and its life in seconds."""
        realm = challenge.parameters.get("realm", "")
        parts = urlsplit(realm)
        local = is_loopback(parts.hostname or "")
        if parts.scheme != "https" and not (parts.scheme == "http" and (local or self._insecure)):
            raise RemoteError(
                f"{self._domain} names a token server that is not secure.",
                code="registry.token",
                hint="Ask who runs the registry.",
            )
        query = {"scope": f"repository:{self._path}:pull"}
        if service := challenge.parameters.get("service"):
            query["service"] = service
        answer = self._transport.retry(lambda: self._ask(realm, query, credentials))
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise RemoteError(
                f"{parts.hostname} gave no token.",
                code="registry.token",
                hint="Try again, or ask who runs the registry.",
            )
        life = answer.get("expires_in")
        life = life if isinstance(life, int | float) and life > 0 else _TOKEN_SECONDS
        return f"Bearer {token}", max(life * 0.9, 5.0)

    def _ask(
        self, realm: str, query: dict[str, str], credentials: Credentials | None
    ) -> dict[str, Any]:
        headers, method, data = {}, "GET", None
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
        if credentials and credentials.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "crumble", **query}
            form["refresh_token"] = credentials.identity_token
            url, method, data = realm, "POST", urlencode(form).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif credentials:
            headers["Authorization"] = credentials.basic
        with self._transport.open(url, headers, method, data) as response:
            if response.status_code in (400, 401, 403):
                raise denied(self._domain, self._path, known=credentials is not None)
            if not response.is_success:
                raise RemoteError(
                    f"{response.url.host} answers {response.status_code} when asked for a token.",
                    code="registry.token",
                    hint="Log in with `docker login`, or check the image's name.",
                )
            try:
                answer = json.loads(read_body(response, _MAX_TOKEN))
            except (ValueError, RecursionError):
                answer = None
        return answer if isinstance(answer, dict) else {}


def denied(domain: str, path: str, *, known: bool) -> RemoteError:
    """The error for an image one may not have. known: credentials were found and did not help."""
    why = "refuses your credentials for" if known else "wants you to log in for"
    return RemoteError(
        f"{domain} {why} {path}, or there is no such image.",
        code="registry.denied",
        hint=f"Check the name, or log in with a tool such as podman or skopeo: login {domain}.",
    )
