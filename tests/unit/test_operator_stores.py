"""What a pool says of stores that nodes share, of codecs and of certificates, as cache nodes are told it."""

from __future__ import annotations

from typing import Any

import operator_examples as examples
import pytest
from kvcommons_core.settings import NodeSettings, load_settings
from kvcommons_core.settings_remote import RedisTier, S3Tier
from kvcommons_core.settings_tiers import DiskTier
from kvcommons_operator import names
from kvcommons_operator.api import parse_pool, parse_quantity, unbuilt
from kvcommons_operator.observed import Api, Manifest, TierState
from kvcommons_operator.outcome import Plan
from kvcommons_operator.plan import plan_pool

REDIS = {"type": "remote", "capacity": "64Gi", "redis": {"urlSecretRef": {"name": "store", "key": "where"}}}
BUCKET = {
    "type": "remote",
    "capacity": "2Ti",
    "s3": {"bucket": "kv-cache", "region": "eu-1", "credentialsSecretRef": {"name": "keys"}},
}
DISK = {"type": "disk", "capacity": "10Gi", "emptyDir": {}}
CERTIFICATES = Api("cert-manager.io/v1", "Certificate")


def planned(**spec: Any) -> Plan:
    return plan_pool(examples.pool(**spec), examples.pool_world(apis=frozenset({CERTIFICATES})))


def pod_of(**spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = examples.named(planned(**spec).apply, "DaemonSet")["spec"]["template"]["spec"]
    return found


def node_of(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = [one for one in pod["containers"] if one["name"] == "cache-node"]
    return dict(found)


def settings_of(pod: dict[str, Any]) -> NodeSettings:
    """What the node makes of its variables."""
    environ = {one["name"]: one.get("value", "from-a-source") for one in node_of(pod)["env"]}
    return load_settings(NodeSettings, environ=environ)


def files_of(pod: dict[str, Any], volume: str) -> dict[str, str]:
    """Path in the node's container, by (Secret, key)."""
    (mount,) = [one for one in node_of(pod)["volumeMounts"] if one["name"] == volume]
    (source,) = [one["secret"] for one in pod["volumes"] if one["name"] == volume]
    assert mount["readOnly"] is True
    return {f"{source['secretName']}/{item['key']}": f"{mount['mountPath']}/{item['path']}" for item in source["items"]}


def test_stores_come_behind_the_disk_with_their_secrets_as_files() -> None:
    """Addresses and keys are in files that the operator never reads; names begin with the pool, so that two pools share a store apart."""
    pod = pod_of(tiers={"secondary": [DISK, REDIS, BUCKET]})
    disk, redis, s3 = settings_of(pod).node.tiers
    assert isinstance(disk, DiskTier)
    assert isinstance(redis, RedisTier)
    assert isinstance(s3, S3Tier)
    assert files_of(pod, "kvcommons-store-1") == {"store/where": redis.url_file}
    keys = {"keys/accessKeyId": s3.access_key_id_file, "keys/secretAccessKey": s3.secret_access_key_file}
    assert files_of(pod, "kvcommons-store-2") == keys
    assert (redis.capacity_bytes, s3.capacity_bytes) == (64 << 30, 2 << 40)
    assert (redis.prefix, s3.prefix) == ("kvc/llm.commons/", "llm.commons/")
    assert (s3.bucket, s3.region, s3.endpoint) == ("kv-cache", "eu-1", "")


def test_a_bucket_is_opened_by_the_pods_own_identity_where_no_secret_is_named() -> None:
    """Then there is nothing to mount; a prefix that is given becomes a folder."""
    pod = pod_of(tiers={"secondary": [{**BUCKET, "s3": {"bucket": "kv-cache", "prefix": "team/kv"}}]})
    (s3,) = settings_of(pod).node.tiers
    assert isinstance(s3, S3Tier)
    assert (s3.prefix, s3.access_key_id_file) == ("team/kv/", "")
    assert not [volume for volume in pod["volumes"] if "store" in volume["name"]]


def test_the_pod_pays_for_what_the_node_knows_of_a_store() -> None:
    """By its capacity, up to a bound that the node keeps too."""

    def memory(*tiers: dict[str, Any]) -> int:
        return int(parse_quantity(node_of(pod_of(tiers={"secondary": list(tiers)}))["resources"]["limits"]["memory"]))

    small, large = memory(REDIS) - memory(), memory({**REDIS, "capacity": "16Pi"}) - memory()
    assert 2 * (64 << 20) < small < 256 << 20 < large < 640 << 20


@pytest.mark.parametrize(
    ("codec", "told"),
    [
        ("lossless", ("lossless", "deny")),
        ("fp8", ("fp8-e4m3", "allow")),
        ("int8", ("int8", "allow")),
        ("int4", ("int4", "allow")),
        ("k16v8", ("k16v8", "allow")),
    ],
)
def test_a_codec_is_the_disks_and_one_with_loss_is_consent(codec: str, told: tuple[str, str]) -> None:
    """The pool's choice is what the node asks for before it answers from what has lost precision."""
    (disk,) = settings_of(pod_of(tiers={"secondary": [DISK]}, compression={"codec": codec})).node.tiers
    assert isinstance(disk, DiskTier)
    assert (disk.codec.partition(":")[0], disk.lossy) == told


@pytest.mark.parametrize(
    ("tiers", "secondary", "passed_over"),
    [
        (["disk", "remote"], [DISK], False),
        (["disk", "remote"], [DISK, REDIS], True),
        (["memory", "disk"], [DISK], True),
        (["remote"], [DISK], True),
        (["disk"], [], True),
    ],
)
def test_what_a_codec_does_not_reach_is_told(
    tiers: list[str], secondary: list[dict[str, Any]], passed_over: bool
) -> None:
    """Only disks hold what is made smaller: whoever asks for more, or has no disk, reads so in Accepted."""
    pool = parse_pool(examples.pool(tiers={"secondary": secondary}, compression={"codec": "lossless", "tiers": tiers}))
    assert ["spec.compression"] * passed_over == [gap.field for gap in unbuilt(pool.spec)]


def test_without_a_codec_nothing_is_said_of_one() -> None:
    """Nodes that were made before keep their template."""
    (disk,) = settings_of(pod_of(tiers={"secondary": [DISK]})).node.tiers
    assert isinstance(disk, DiskTier)
    assert (disk.codec, disk.lossy) == ("none", "deny")


# Certificates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tls", "secret"),
    [
        ({"secretRef": {"name": "given"}}, "given"),
        ({"certManager": {"issuerRef": {"name": "ca", "kind": "ClusterIssuer"}}}, "commons-node-tls"),
    ],
)
def test_nodes_show_each_other_a_certificate(tls: dict[str, Any], secret: str) -> None:
    """From a Secret that a person or cert-manager fills: authority, certificate and key."""
    pod = pod_of(security={"tls": tls})
    peers = settings_of(pod).node.peers
    assert peers is not None
    assert files_of(pod, "kvcommons-peer-tls") == {
        f"{secret}/ca.crt": peers.tls_ca_file,
        f"{secret}/tls.crt": peers.tls_cert_file,
        f"{secret}/tls.key": peers.tls_key_file,
    }


def test_cert_manager_is_asked_for_the_certificate() -> None:
    """For both sides of a connection, of the issuer that the pool names, into the Secret that the nodes mount."""
    tls = {"certManager": {"issuerRef": {"name": "ca"}}}
    found = examples.named(planned(security={"tls": tls}).apply, "Certificate")
    assert found["spec"]["secretName"] == found["metadata"]["name"] == "commons-node-tls"
    assert found["spec"]["issuerRef"] == {"name": "ca", "kind": "Issuer", "group": "cert-manager.io"}
    assert {"server auth", "client auth"} <= set(found["spec"]["usages"])
    given = planned(security={"tls": {"secretRef": {"name": "given"}}})
    assert "Certificate" not in {one["kind"] for one in given.apply}
    live = examples.live([found])
    gone = plan_pool(examples.pool(), examples.pool_world(children=live, apis=frozenset({CERTIFICATES})))
    assert [ref.kind for ref in gone.delete] == ["Certificate"]


def test_without_cert_manager_its_certificate_is_missed_by_name() -> None:
    """Nothing is refused: it is made as soon as the API is there."""
    tls = {"certManager": {"issuerRef": {"name": "ca"}}}
    plan = plan_pool(examples.pool(security={"tls": tls}), examples.pool_world())
    assert "Certificate" not in {one["kind"] for one in plan.apply}
    assert [event.reason for event in plan.events] == ["ApiMissing"]


# What is said ---------------------------------------------------------------------------------------------------------


def test_a_store_is_told_by_what_it_is() -> None:
    """Cache nodes call it redis or s3; one that is away is a degraded tier, with the node's words."""
    wanted: Manifest = examples.pool(tiers={"secondary": [REDIS]})
    template = examples.named(plan_pool(wanted, examples.pool_world()).apply, "DaemonSet")["spec"]["template"]
    pods = (examples.node_pod(0, template["metadata"]["annotations"][names.TEMPLATE_HASH]),)
    for health, verdict in (("serving", "True"), ("degraded", "False")):
        tier = TierState("redis", health, "it does not answer", capacity_bytes=64 << 30)
        world = examples.pool_world(pods=pods, nodes={"pod-0": examples.node_state(0, tiers=(tier,))})
        status = plan_pool(wanted, world).status
        assert examples.condition(status, "TiersHealthy")["status"] == verdict
        (told,) = status["tiers"]
        assert (told["type"], told["capacity"]) == ("redis", "64Gi")
