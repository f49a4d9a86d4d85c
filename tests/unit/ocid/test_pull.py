import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from crumble_common.errors import CrumbleError, RemoteError, UsageError
from crumble_common.layer_index import LayerIndex
from crumble_common.messages.image import Image, ImageConfig, ImageGet, Progress
from crumble_ocid import transfer
from crumble_ocid.library import Library
from crumble_ocid.progress import Reporter
from crumble_ocid.store import Store
from framework.registry import Fault, Registry, encode, make_image, running_registry
from framework.registry_archives import PACKERS, Item, sha256, tar


def get(library: Library, reference: str, platform: str = "", pull: Any = "missing") -> Image:
    return library.get(ImageGet(reference, platform, pull))


def failure(library: Library, reference: str, platform: str = "") -> CrumbleError:
    with pytest.raises(CrumbleError) as caught:
        get(library, reference, platform)
    assert "Traceback" not in str(caught.value) and "\n" not in str(caught.value)
    assert leftovers(library.store) == []
    return caught.value


def leftovers(store: Store) -> list[str]:
    """What a failed pull left in the store, but partial downloads that can be resumed."""
    work = [p.name for p in (store.root / "work").iterdir() if p.suffix != ".partial"]
    places = ("leases", "references", "layers")
    return work + [path.name for place in places for path in (store.root / place).iterdir()]


def test_an_image_is_pulled_and_described(library: Library, registry: Registry) -> None:
    layer = tar(Item("etc/hello", b"hello\n"))
    parts = make_image(PACKERS["gzip"](layer), PACKERS["zstd"](layer), diff_ids=[sha256(layer)] * 2)
    image = get(library, registry.add(parts))
    assert image.id == sha256(parts.config) and image.digest == parts.digest
    assert image.reference == f"{registry.host}/test/image:latest"
    assert image.platform == "linux/riscv64" and image.created == "2026-01-02T03:04:05Z"
    assert image.config == ImageConfig(env=["A=b"], cmd=["sh"], working_dir="/w", user="1:2")
    assert image.size == sum(map(len, (parts.manifest, parts.config, *parts.layers)))
    assert [LayerIndex.open(item.index).find(0, b"etc") for item in image.layers] == [1, 1]
    asked = len(registry.requests)
    assert get(library, image.reference) == image
    assert len(registry.requests) == asked, "a cached image asks nobody"
    assert get(library, f"{registry.host}/test/image@{parts.digest}").digest == parts.digest


def test_pull_policies(library: Library, registry: Registry) -> None:
    reference = registry.add(make_image())
    with pytest.raises(UsageError) as caught:
        get(library, reference, pull="never")
    assert caught.value.code == "image.missing"
    first = get(library, reference)
    other = make_image(tar(Item("other")))
    registry.add(other)
    assert get(library, reference, pull="never") == first == get(library, reference)
    assert get(library, reference, pull="always").digest == other.digest
    assert get(library, reference).digest == other.digest


def test_the_right_platform_is_picked(library: Library, registry: Registry) -> None:
    images = {
        name: make_image(tar(Item(name.replace("/", "-"))), architecture=name.split("/")[1])
        for name in ("linux/amd64", "linux/riscv64", "linux/arm64/v8", "unknown/unknown")
    }
    reference = registry.add_index(images)
    assert get(library, reference).digest == images["linux/riscv64"].digest
    assert get(library, reference, "linux/aarch64").digest == images["linux/arm64/v8"].digest
    error = failure_of_platform(library, reference, "linux/s390x")
    assert error.message.endswith("it is made for linux/amd64, linux/arm64, linux/riscv64.")
    assert error.detail["platforms"] == ["linux/amd64", "linux/arm64", "linux/riscv64"]
    assert len(library.images().images) == 2


def failure_of_platform(library: Library, reference: str, platform: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        get(library, reference, platform)
    assert caught.value.code == "image.no_platform"
    return caught.value


def test_a_single_manifest_of_another_platform_is_refused(
    library: Library, registry: Registry
) -> None:
    error = failure(library, registry.add(make_image(architecture="amd64")))
    assert error.code == "image.no_platform" and "made for linux/amd64" in error.message


def test_indexes_that_never_end_are_refused(library: Library, registry: Registry) -> None:
    inner = encode({"schemaVersion": 2, "manifests": []})
    for level in range(6):
        platform = {"os": "linux", "architecture": "riscv64"}
        item = {"digest": sha256(inner), "size": len(inner), "platform": platform}
        registry.put(f"/v2/test/image/manifests/{sha256(inner)}", inner)
        inner = encode({"schemaVersion": 2, "manifests": [item], "level": level})
    registry.put("/v2/test/image/manifests/latest", inner)
    assert "index of indexes" in failure(library, f"{registry.host}/test/image").message


def test_progress_is_told(library: Library, registry: Registry) -> None:
    seen: list[Progress] = []
    reporter = Reporter(seen.append, "op7")
    parts = make_image()
    library.get(ImageGet(registry.add(parts)), reporter)
    assert {event.operation for event in seen} == {"op7"}
    last = [event for event in seen if event.step == "download layers"][-1]
    assert last.done == last.total == len(parts.layers[0])


@pytest.mark.parametrize("kind", ["busy", "limited", "reset"])
def test_passing_failures_are_tried_again(library: Library, registry: Registry, kind: str) -> None:
    parts = make_image()
    reference = registry.add(parts)
    registry.faults = {"/manifests/": Fault(kind, 2), sha256(parts.layers[0]): Fault(kind, 2)}
    assert get(library, reference).digest == parts.digest


def test_a_cut_download_is_resumed(library: Library, registry: Registry) -> None:
    parts = make_image(tar(Item("a", b"x" * 100_000)))
    reference = registry.add(parts)
    digest = sha256(parts.layers[0])
    registry.faults = {digest: Fault("cut", 3)}
    assert get(library, reference).digest == parts.digest
    ranges = [h.get("Range", "") for _, path, h in registry.requests if digest in path]
    starts = [int(text[6:-1] or 0) for text in ranges]
    assert (
        starts[0] == 0 and starts == sorted(starts) and starts[-1] > len(parts.layers[0]) * 3 // 4
    )


def test_a_failed_pull_is_resumed_by_the_next(
    library: Library, hasty: Library, registry: Registry
) -> None:
    parts = make_image(tar(Item("a", b"x" * 100_000)))
    reference = registry.add(parts)
    digest = sha256(parts.layers[0])
    registry.faults = {digest: Fault("stall")}
    error = failure(hasty, reference)
    assert error.code == "remote.unreachable" and "did not answer in time" in error.message
    partial = next((library.store.root / "work").glob("*.partial"))
    half = partial.stat().st_size
    assert half >= len(parts.layers[0]) // 2
    registry.faults = {}
    registry.requests.clear()
    assert get(library, reference).digest == parts.digest
    (request,) = [headers for _, path, headers in registry.requests if digest in path]
    assert request["Range"] == f"bytes={half}-"


def test_a_bad_partial_download_is_thrown_away(library: Library, registry: Registry) -> None:
    parts = make_image()
    reference = registry.add(parts)
    digest = sha256(parts.layers[0])
    partial = library.store.root / "work" / f"{digest.replace(':', '-')}.partial"
    for size in (10, len(parts.layers[0]), len(parts.layers[0]) + 10):
        partial.write_bytes(b"?" * size)
        assert get(library, reference, pull="always").digest == parts.digest
        library.remove(reference)


FAULTS = {
    "hang": "did not answer in time",
    "short": "bytes where 10240 should be",
    "long": "bytes where 10240 should be",
    "corrupt": "another digest",
    "busy": "answers 503",
    "reset": "Cannot talk to",
    "missing": "lacks sha256:",
    "cut": "Cannot talk to",
    "redirect": "in circles",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_bad_blobs_are_refused(
    library: Library, hasty: Library, registry: Registry, kind: str
) -> None:
    parts = make_image(tar(Item("a", b"x" * 5)))
    reference = registry.add(parts)
    registry.faults = {sha256(parts.layers[0]): Fault(kind)}
    error = failure(hasty if kind == "hang" else library, reference)
    assert isinstance(error, RemoteError) and FAULTS[kind] in error.message
    assert not library.store.has_blob(sha256(parts.layers[0]))


def test_a_blob_shorter_than_its_manifest_says_ends(library: Library, registry: Registry) -> None:
    """Asking again would bring the same: once is enough."""
    parts = make_image(tar(Item("a", b"x" * 100_000)))
    registry.add(parts)
    document = json.loads(parts.manifest)
    document["layers"][0]["size"] += 1000
    registry.put("/v2/test/image/manifests/liar", encode(document))
    error = failure(library, f"{registry.host}/test/image:liar")
    assert error.code == "remote.length" and "bytes where" in error.message
    assert registry.count(sha256(parts.layers[0])) == 1


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("hang", "did not answer in time"),
        ("huge", "sends more than 4194304 bytes"),
        ("endless", "sends more than 4194304 bytes"),
        ("corrupt", "is not JSON"),
        ("missing", "There is no image"),
        ("stall", "did not answer in time"),
    ],
)
def test_bad_manifests_are_refused(
    library: Library, hasty: Library, registry: Registry, kind: str, says: str
) -> None:
    reference = registry.add(make_image())
    registry.faults = {"/manifests/": Fault(kind)}
    if kind == "corrupt":
        registry.put("/v2/test/image/manifests/latest", b"{" * 100)
        registry.faults = {}
    assert says in failure(hasty if "time" in says else library, reference).message


def test_a_manifest_with_another_digest_is_refused(library: Library, registry: Registry) -> None:
    parts = make_image()
    registry.add(parts)
    registry.put(f"/v2/test/image/manifests/{parts.digest}", parts.manifest + b" ")
    error = failure(library, f"{registry.host}/test/image@{parts.digest}")
    assert error.code == "remote.digest"


def test_a_trickle_ends(
    library: Library, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_SLOW_WINDOW", 0.1)
    parts = make_image(tar(Item("a", b"x" * 2_000_000)))
    reference = registry.add(parts)
    registry.faults = {sha256(parts.layers[0]): Fault("trickle")}
    assert failure(library, reference).code == "remote.slow"


def test_nobody_there(library: Library) -> None:
    with running_registry() as gone:
        host = gone.host
    error = failure(library, f"{host}/x")
    assert f"Cannot talk to {host}" in error.message and error.hint


def test_a_corrupt_layer_is_refused(library: Library, registry: Registry) -> None:
    packed = bytearray(PACKERS["gzip"](tar(Item("a", b"abc" * 1000))))
    packed[len(packed) // 2] ^= 0xFF
    error = failure(library, registry.add(make_image(bytes(packed))))
    assert error.code == "image.archive"


def test_a_layer_of_another_diff_id_is_refused(library: Library, registry: Registry) -> None:
    parts = make_image(diff_ids=["sha256:" + "1" * 64])
    assert failure(library, registry.add(parts)).code == "image.digest"


def test_concurrent_pulls_share_each_download(library: Library, registry: Registry) -> None:
    shared, own = tar(Item("s", b"s" * 200_000)), tar(Item("o"))
    one = registry.add(make_image(shared, own), "test/one")
    two = registry.add(make_image(shared), "test/two")
    errors: list[BaseException] = []

    def pull(reference: str) -> None:
        try:
            get(library, reference)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=pull, args=(name,)) for name in (one, two, one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert registry.count(sha256(shared)) == 1
    assert len(library.images().images) == 2


def test_when_one_layer_fails_the_others_stop(library: Library, registry: Registry) -> None:
    slow, bad = tar(Item("s", b"s" * 3_000_000)), tar(Item("b"))
    reference = registry.add(make_image(slow, bad))
    registry.faults = {sha256(slow): Fault("trickle"), sha256(bad): Fault("corrupt")}
    assert failure(library, reference).code == "remote.digest"


def test_a_pull_can_be_cancelled(library: Library, registry: Registry) -> None:
    stop = threading.Event()
    layer = tar(Item("s", b"s" * 3_000_000))
    reference = registry.add(make_image(layer))
    registry.faults = {sha256(layer): Fault("trickle")}
    reporter = Reporter(
        lambda event: stop.set() if event.step == "download layers" else None, "", stop
    )
    with pytest.raises(UsageError) as caught:
        library.get(ImageGet(reference), reporter)
    assert caught.value.code == "cancelled" and leftovers(library.store) == []


# Authorization


def log_in(tmp_path: Path, host: str, user: str, password: str) -> None:
    folder = tmp_path / "home/.docker"
    folder.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


@pytest.mark.parametrize("token", ["", "t0ken"])
def test_credentials_are_used(
    library: Library, registry: Registry, tmp_path: Path, token: str
) -> None:
    parts = make_image()
    reference = registry.add(parts)
    registry.basic, registry.token = ("" if token else "me:secret"), token
    if token:
        assert get(library, reference).digest == parts.digest, "anonymous tokens"
        library.remove(reference)
        registry.basic = "me:secret"
    error = failure(library, reference)
    assert error.code == "registry.denied" and "log in" in error.message
    log_in(tmp_path, registry.host, "me", "wrong")
    error = failure(library, reference)
    assert "refuses your credentials" in error.message and "wrong" not in str(error)
    log_in(tmp_path, registry.host, "me", "secret")
    assert get(library, reference).digest == parts.digest
    assert registry.count("/token") <= 4


def test_a_token_that_runs_out_is_renewed(library: Library, registry: Registry) -> None:
    reference = registry.add(make_image())
    registry.token = "first"
    registry.faults = {"/blobs/": Fault("busy", 1)}
    assert get(library, reference)
    registry.token = "second"
    assert get(library, reference, pull="always")


@pytest.mark.parametrize("answer", [{}, {"token": 7}, {"token": "a\r\nX: y"}, []])
def test_bad_tokens_are_refused(library: Library, registry: Registry, answer: Any) -> None:
    reference = registry.add(make_image())
    registry.token, registry.token_answer = "t", answer
    assert failure(library, reference).code == "registry.token"


def test_credentials_do_not_follow_a_redirect_to_another_host(
    library: Library, registry: Registry, tmp_path: Path
) -> None:
    with running_registry() as other:
        parts = make_image()
        reference = registry.add(parts)
        registry.basic = "me:secret"
        log_in(tmp_path, registry.host, "me", "secret")
        digest = sha256(parts.layers[0])
        other.put("/elsewhere", parts.layers[0])
        registry.faults = {digest: Fault("redirect", argument=f"http://{other.host}/elsewhere")}
        assert get(library, reference).digest == parts.digest
        (request,) = other.requests
        assert "Authorization" not in request[2]
        assert any("Authorization" in headers for _, _, headers in registry.requests)
