import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble_common.errors import RemoteError
from crumble_ocid.manifest import (
    DOCKER_INDEX,
    DOCKER_MANIFEST,
    MAX_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    parse_config,
    parse_document,
)

DIGEST = "sha256:" + "a" * 64
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 3}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 3}


def manifest(**changes: Any) -> bytes:
    base = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER]}
    return json.dumps({**base, **changes}).encode()


def config(**changes: Any) -> bytes:
    base = {"os": "linux", "architecture": "riscv64", "rootfs": {"diff_ids": [DIGEST]}}
    return json.dumps({**base, **changes}).encode()


def test_manifests_and_indexes_are_told_apart() -> None:
    assert isinstance(parse_document(manifest()), Manifest)
    assert isinstance(parse_document(manifest(mediaType=DOCKER_MANIFEST)), Manifest)
    assert isinstance(
        parse_document(manifest(mediaType=None), OCI_MANIFEST + "; charset=utf-8"), Manifest
    )
    assert isinstance(parse_document(manifest(mediaType=None)), Manifest)
    index = json.dumps({"mediaType": DOCKER_INDEX, "manifests": [LAYER]}).encode()
    assert isinstance(parse_document(index), Index)
    assert isinstance(parse_document(b'{"manifests": []}', OCI_INDEX), Index)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "image.manifest"),
        (b"[]", "image.manifest"),
        (b"[" * 100_000, "image.manifest"),
        (b" " * (MAX_MANIFEST + 1), "image.manifest"),
        (b"{}", "image.manifest"),
        (manifest(mediaType="text/html"), "image.manifest"),
        (manifest(schemaVersion=1), "image.schema1"),
        (b'{"fsLayers": [], "signatures": []}', "image.schema1"),
        (manifest(layers=None), "image.manifest"),
        (manifest(layers=[LAYER] * 600), "image.manifest"),
        (manifest(layers=[{**LAYER, "size": -1}]), "image.manifest"),
        (manifest(layers=[{**LAYER, "size": True}]), "image.manifest"),
        (manifest(layers=[{**LAYER, "size": 1 << 60}]), "image.manifest"),
        (manifest(layers=[{**LAYER, "size": "3"}]), "image.manifest"),
        (manifest(layers=[{**LAYER, "digest": "sha256:../../../../etc/passwd"}]), "image.manifest"),
        (manifest(layers=[{**LAYER, "digest": DIGEST.upper()}]), "image.manifest"),
        (manifest(layers=[{**LAYER, "mediaType": "image/png"}]), "image.manifest"),
        (manifest(layers=[LAYER["digest"]]), "image.manifest"),
        (manifest(config=None), "image.manifest"),
        (manifest(config={**CONFIG, "size": 1 << 30}), "image.manifest"),
        (
            manifest(config={**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}),
            "image.artifact",
        ),
        (manifest(annotations={"a": 1}), "image.manifest"),
    ],
)
def test_bad_manifests(data: bytes, code: str) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_document(data)
    assert caught.value.code == code


def test_configs() -> None:
    run = {
        "Env": ["A=b"],
        "Cmd": "sleep 1",
        "Entrypoint": None,
        "Labels": {"a": "b"},
        "Volumes": {},
    }
    parsed = parse_config(config(config=run, created="now"), 1)
    assert parsed.env == ["A=b"] and parsed.cmd == ["/bin/sh", "-c", "sleep 1"]
    assert parsed.entrypoint == [] and parsed.labels == {"a": "b"} and parsed.created == "now"
    assert str(parsed.platform) == "linux/riscv64"
    assert parse_config(config(config=None), 1).user == ""


@pytest.mark.parametrize(
    "data",
    [
        config(rootfs=None),
        config(rootfs={"diff_ids": ["x"]}),
        config(rootfs={"diff_ids": []}),
        config(config=[]),
        config(config={"Env": ["a\0b"]}),
        config(config={"Env": "A=b"}),
        config(config={"User": 5}),
        config(config={"Labels": {"a": []}}),
        config(os=7),
    ],
)
def test_bad_configs(data: bytes) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_config(data, 1)
    assert caught.value.code == "image.manifest"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([DIGEST, OCI_INDEX]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*CONFIG, "platform", "os", "diff_ids", "Env", "Cmd"]), inner
        )
    ),
    max_leaves=8,
)
KEYS = st.sampled_from(
    ["mediaType", "config", "layers", "manifests", "annotations", "schemaVersion", "rootfs", "os"]
)


# Invariant: any JSON gives a document whose every digest is one and every size is sane, or RemoteError.
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(KEYS, JSON))
def test_any_document(changes: dict[str, Any]) -> None:
    try:
        document = parse_document(manifest(**changes))
    except RemoteError:
        pass
    else:
        items = document.manifests if isinstance(document, Index) else document.layers
        assert all(item.digest == DIGEST and 0 <= item.size <= 1 << 40 for item in items)
    try:
        parsed = parse_config(config(**changes), 1)
    except RemoteError:
        return
    assert all(isinstance(text, str) for text in [*parsed.env, *parsed.cmd, parsed.user])
