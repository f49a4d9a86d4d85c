"""Everything `ocid` does, behind one object: the service and the command line both use it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from crumble_common.errors import UsageError
from crumble_common.messages.image import (
    Image,
    ImageCommit,
    ImageDetails,
    ImageExport,
    ImageGet,
    Images,
    Kernel,
    KernelGet,
    Removed,
)
from crumble_ocid.files import host_errors
from crumble_ocid.images import (
    find_image,
    inspect_image,
    list_images,
    load_image,
    lookup,
    read_manifest,
    remove_image,
)
from crumble_ocid.kernels import kernels_home, stored_kernel
from crumble_ocid.outside import Outside
from crumble_ocid.platform import Platform, parse_platform
from crumble_ocid.progress import Reporter
from crumble_ocid.reference import (
    ArchiveReference,
    DebianReference,
    LayoutReference,
    Reference,
    parse_reference,
)
from crumble_ocid.store import Store
from crumble_ocid.transfer import Transport


class Library:
    """An image store with ways to fill it. Its methods may be called from several threads.

    They raise UsageError, RemoteError and HostError, as crumble_common.errors says.
    """

    def __init__(
        self,
        store: Store,
        outside: Outside | None = None,
        transport: Transport | None = None,
        insecure: Iterable[str] = (),
    ) -> None:
        self.store = store
        self._outside = outside or Outside()
        self._transport = transport or Transport()
        self._insecure = frozenset(insecure)

    def abort(self) -> None:
        """Ends waiting for the network everywhere, so that a stop is noticed."""
        self._transport.abort()

    def close(self) -> None:
        """Closes connections."""
        self._transport.close()
        self._outside.close()

    def get(self, request: ImageGet, reporter: Reporter | None = None) -> Image:
        """The image, from the store or from where its reference says, as the pull policy has it."""
        reference, platform = parse_reference(request.reference), parse_platform(request.platform)

        def cached() -> Image | None:
            return find_image(self.store, str(reference), str(platform))

        # What a path holds may change at any time, and looking costs little.
        fresh = request.pull == "always" or isinstance(
            reference, LayoutReference | ArchiveReference
        )
        if request.pull == "never" or not fresh:
            image = cached()
            if image is not None:
                return image
            if request.pull == "never":
                raise UsageError(
                    f"There is no image {reference} for {platform} in the store.",
                    code="image.missing",
                    hint="`crumble pull` gets it.",
                )
        return self._get_once(reference, platform, fresh, reporter or Reporter())

    def _get_once(
        self, reference: Reference, platform: Platform, fresh: bool, reporter: Reporter
    ) -> Image:
        """Fetches; whoever else wants the same waits for it."""
        name = hashlib.sha256(f"{reference}\n{platform}".encode()).hexdigest()

        def done() -> bool:
            return not fresh and find_image(self.store, str(reference), str(platform)) is not None

        with (
            host_errors("use the image store", self.store.root),
            self.store.work(f"image-{name}", done, lambda _: reporter.check()) as right,
        ):
            if right is not None:
                return self._fetch(reference, platform, reporter)
        image = find_image(self.store, str(reference), str(platform))
        assert image is not None
        return image

    def _fetch(self, reference: Reference, platform: Platform, reporter: Reporter) -> Image:
        # Imported here: a cached image needs none of it, and it takes 100 ms.
        if isinstance(reference, DebianReference):
            from crumble_ocid.debian.image import build_debian_image

            return build_debian_image(self.store, self._transport, reference, platform, reporter)
        if isinstance(reference, LayoutReference):
            from crumble_ocid.import_image import import_layout

            return import_layout(self.store, reference, platform, reporter)
        if isinstance(reference, ArchiveReference):
            from crumble_ocid.import_image import import_archive

            return import_archive(self.store, reference, platform, reporter)
        from crumble_ocid.pull import pull_image

        return pull_image(
            self.store,
            self._transport,
            reference,
            platform,
            self._insecure,
            self._outside,
            reporter,
        )

    def images(self) -> Images:
        """Every image, newest first."""
        return Images(list_images(self.store))

    def inspect(self, reference: str) -> ImageDetails:
        """An image in the store."""
        return inspect_image(self.store, reference)

    def remove(self, reference: str) -> Removed:
        """Removes a reference and what only it needed."""
        return remove_image(self.store, reference)

    def export(self, request: ImageExport, reporter: Reporter | None = None) -> None:
        """Writes an image to a path that must be new."""
        from crumble_ocid.export import export_archive, export_layout

        path = Path(request.path)
        if not path.is_absolute():
            raise UsageError(
                f"{path} is a relative path.", code="export.path", hint="Give it whole."
            )
        image = load_image(self.store, lookup(self.store, request.reference)[0])
        write = export_layout if request.format == "oci" else export_archive
        with self.store.lease() as lease:
            lease.add(*self._parts(image))
            write(self.store, image, path, self._outside, reporter or Reporter())

    def commit(self, request: ImageCommit, reporter: Reporter | None = None) -> Image:
        """Makes an image of one there is and a captured layer."""
        from crumble_ocid.commit import commit_image

        return commit_image(self.store, request, reporter or Reporter())

    def kernel(
        self, request: KernelGet, reporter: Reporter | None = None, *, refresh: bool = False
    ) -> Kernel:
        """A kernel, from the store or the Debian archive."""
        home = kernels_home(self.store, request.architecture, request.version)
        if not refresh and (kernel := stored_kernel(home, request.version)) is not None:
            return kernel
        # Imported here: a kernel that is there needs none of it, and it takes 70 ms.
        from crumble_ocid.kernel_provider import KernelProvider

        provider = KernelProvider(self.store, self._transport)
        reporter = reporter or Reporter()
        with host_errors("use the image store", self.store.root):
            return provider.get(request.architecture, request.version, reporter, refresh=refresh)

    def _parts(self, image: Image) -> set[str]:
        manifest, config = read_manifest(self.store, image.digest)
        layers = {layer.digest for layer in manifest.layers}
        return {image.digest, image.id, *layers, *config.diff_ids}
