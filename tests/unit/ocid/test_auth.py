import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import HostError
from crumble_ocid.auth import Challenge, Credentials, find_credentials, parse_challenges
from crumble_ocid.outside import Broker, Outside


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "challenges"),
    [
        ('Basic realm="x"', [Challenge("basic", {"realm": "x"})]),
        (
            'Bearer realm="https://a/b?c,d",service="s \\"q\\"",scope=a:b',
            [Challenge("bearer", {"realm": "https://a/b?c,d", "service": 's "q"', "scope": "a:b"})],
        ),
        (
            'Basic realm="x", Bearer realm="y"',
            [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})],
        ),
        ("Negotiate", [Challenge("negotiate", {})]),
        ("", []),
        ("=,\x00", []),
    ],
)
def test_challenges(header: str, challenges: list[Challenge]) -> None:
    assert parse_challenges(header) == challenges


# Invariant: any header gives challenges with texts as parameters.
@given(st.text(alphabet='Basicer ="\\,x', max_size=40))
def test_any_challenge(header: str) -> None:
    for challenge in parse_challenges(header):
        assert challenge.scheme == challenge.scheme.lower()
        assert all(isinstance(value, str) for value in challenge.parameters.values())


def write(path: Path, config: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))


def found(domain: str, path: str = "a/b", outside: Outside | None = None) -> Credentials | None:
    return find_credentials(domain, path, outside or Outside())


def test_where_credentials_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    assert found("r.io") is None
    auths = {
        "r.io": {"auth": encoded("docker:1")},
        "r.io/a": {"auth": encoded("space:2:3")},
        "https://s.io/v2/": {"auth": encoded("url:4")},
        "https://index.docker.io/v1/": {"auth": encoded("hub:5")},
        "t.io": {"identitytoken": "tok"},
        "bad.io": {"auth": "%%%"},
        "worse.io": 7,
    }
    write(home / ".docker/config.json", {"auths": auths})
    assert found("r.io", "x/y") == Credentials("docker", "1")
    assert found("r.io") == Credentials("space", "2:3")
    assert found("s.io") == Credentials("url", "4")
    assert found("docker.io", "library/x") == Credentials("hub", "5")
    assert found("t.io") == Credentials(identity_token="tok")
    assert found("bad.io") is None and found("worse.io") is None
    write(home / ".config/containers/auth.json", {"auths": {"r.io": {"auth": encoded("podman:6")}}})
    assert found("r.io") == Credentials("podman", "6")
    write(tmp_path / "chosen", {"auths": {"r.io": {"auth": encoded("chosen:7")}}})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "chosen"))
    assert found("r.io") == Credentials("chosen", "7")
    for damaged in ("[]", "{", '{"auths": []}', '{"auths": {"r.io": []}}', "[" * 100_000):
        (tmp_path / "chosen").write_text(damaged)
        assert found("r.io") is None
    assert "s3cret" not in repr(Credentials("u", "s3cret"))


def helper(folder: Path, script: str) -> None:
    path = folder / "docker-credential-test"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("kind", [Outside, Broker])
def test_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Outside]) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    write(tmp_path / "home/.docker/config.json", {"credHelpers": {"r.io": "test"}})
    outside = kind()
    helper(
        tmp_path,
        'read server; [ "$1 $server" = "get r.io" ] && echo \'{"Username":"u","Secret":"p"}\'',
    )
    assert found("r.io", outside=outside) == Credentials("u", "p")
    helper(tmp_path, 'echo \'{"Username":"<token>","Secret":"t"}\'')
    assert found("r.io", outside=outside) == Credentials(identity_token="t")
    helper(tmp_path, "exit 1")
    assert found("r.io", outside=outside) is None
    for script in ("echo nonsense", "echo '[]'"):
        helper(tmp_path, script)
        with pytest.raises(HostError, match="cannot be used"):
            found("r.io", outside=outside)
    for name in ("none", "../../bin/sh", "a b"):
        write(tmp_path / "home/.docker/config.json", {"credsStore": name})
        with pytest.raises(HostError, match="cannot be used"):
            found("r.io", outside=outside)
    outside.close()


def test_a_broker_makes_new_files_only(tmp_path: Path) -> None:
    broker = Broker()
    with broker.create(tmp_path / "a/b") as file:
        file.write(b"new")
    assert (tmp_path / "a/b").read_bytes() == b"new"
    (tmp_path / "old").write_text("old")
    with pytest.raises(Exception, match="there already"):
        broker.create(tmp_path / "old")
    broker.remove(tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old", "it made this file not"
    broker.remove(tmp_path / "a/b")
    assert not (tmp_path / "a/b").exists()
    with pytest.raises(HostError):
        broker.create(tmp_path / "old/below")
    broker.close()
    with pytest.raises(HostError, match="is gone"):
        broker.create(tmp_path / "new")
