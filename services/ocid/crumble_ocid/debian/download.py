"""Downloads packages into the store, several at a time; each is checked against the signed index."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from crumble_ocid.debian.packages import Package
from crumble_ocid.debian.release import Release
from crumble_ocid.progress import Reporter
from crumble_ocid.store import Lease, Store
from crumble_ocid.transfer import Headers, Transport, fetch_blob

if TYPE_CHECKING:
    import httpx

_PARALLEL = 6


def digest_of(package: Package) -> str:
    """The package's digest: its name in the store."""
    return f"sha256:{package.sha256}"


def download_packages(
    store: Store,
    lease: Lease,
    transport: Transport,
    release: Release,
    packages: Iterable[Package],
    reporter: Reporter,
) -> None:
    """Makes the store have every package; raises what the first that failed raised."""
    packages = list(packages)
    lease.add(*map(digest_of, packages))
    step = reporter.step("download packages", sum(item.size for item in packages))
    with concurrent.futures.ThreadPoolExecutor(_PARALLEL, "download") as pool:
        futures = []
        for package in sorted(packages, key=lambda item: -item.size):
            url = f"{release.source.uri}/{package.filename}"
            open_from = functools.partial(_open, transport, url)
            futures.append(
                pool.submit(fetch_blob, store, digest_of(package), package.size, open_from, step)
            )
        done = concurrent.futures.wait(futures, return_when=concurrent.futures.FIRST_EXCEPTION)
        for future in done.not_done:
            future.cancel()
        for future in done.done:
            future.result()
    step.finish()


def _open(
    transport: Transport, url: str, headers: Headers
) -> AbstractContextManager[httpx.Response]:
    return transport.open(url, headers)
