"""A real registry (the `docker-registry` of Debian) on loopback, filled with `skopeo`."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

USER, PASSWORD = "me", "s3cret"
# bcrypt of PASSWORD, as htpasswd -B writes it
_HTPASSWD = f"{USER}:$2b$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n"
_CONFIG = """
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
{auth}
"""


@dataclass
class RealRegistry:
    """Its address; credentials are needed when `locked`."""

    host: str
    locked: bool

    def push(self, source: str, name: str, *options: str) -> str:
        """Copies an image into it; returns the image's reference there."""
        target = f"docker://{self.host}/{name}"
        login = ["--dest-creds", f"{USER}:{PASSWORD}"] if self.locked else []
        done = subprocess.run(
            [
                "skopeo",
                "--insecure-policy",
                "copy",
                "--dest-tls-verify=false",
                *login,
                *options,
                source,
                target,
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return f"{self.host}/{name}"


@contextlib.contextmanager
def real_registry(folder: Path, *, locked: bool = False) -> Iterator[RealRegistry]:
    """Runs the registry until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "htpasswd").write_text(_HTPASSWD)
    auth = f"auth: {{htpasswd: {{realm: test, path: {folder / 'htpasswd'}}}}}" if locked else ""
    config = folder / "config.yml"
    config.write_text(_CONFIG.format(root=folder / "data", port=port, auth=auth))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(config)], stdout=log, stderr=log, cwd=folder
        )
        try:
            _wait_for(port, process, folder / "log")
            yield RealRegistry(f"127.0.0.1:{port}", locked)
        finally:
            process.kill()
            process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise AssertionError("docker-registry does not listen")
