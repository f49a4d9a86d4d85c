"""Downloads packages into the store, several at a time; each is checked against the signed index."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from crumble_ocid.debian.packages import Package
from crumble_ocid.debian.release import Release
from crumble_ocid.progress import Reporter
from crumble_ocid.store import Lease, Store
from crumble_ocid.transfer import Transport, fetch_blob

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
    what: str = "packages",
) -> None:
    """Makes the store have every package; raises what the first that failed raised."""
    packages = list(packages)
    lease.add(*map(digest_of, packages))
    step = reporter.step(f"download {what}", sum(item.size for item in packages))
    calls = []
    for package in sorted(packages, key=lambda item: -item.size):
        open_from = functools.partial(transport.open, f"{release.source.uri}/{package.filename}")
        digest, size = digest_of(package), package.size
        calls.append(functools.partial(fetch_blob, store, digest, size, open_from, step))
    reporter.in_parallel(calls, _PARALLEL)
    step.finish()
