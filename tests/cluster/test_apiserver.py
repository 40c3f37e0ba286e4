"""The API server that the tests here use."""

from __future__ import annotations

import json

import pytest
from kube_apiserver import ApiServer
from kube_client import ApiError
from kube_process import Process, wait_for


def test_kubectl_and_requests_see_the_same_objects(apiserver: ApiServer, namespace: str) -> None:
    """What kubectl applies is there for a plain request, in a namespace of the test's own."""
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": {"key": "value"}}
    apiserver.apply(manifest, namespace=namespace)
    answer = apiserver.request("GET", f"/api/v1/namespaces/{namespace}/configmaps/one")
    assert answer["data"] == {"key": "value"}


def test_a_service_account_may_do_nothing_that_it_was_not_given(apiserver: ApiServer, namespace: str) -> None:
    """RBAC holds: an account without rules is refused, and the audit says so."""
    apiserver.kubectl("create", "serviceaccount", "nobody", "--namespace", namespace)
    nobody = apiserver.as_account(namespace, "nobody")
    with pytest.raises(ApiError) as refused:
        nobody.request("GET", f"/api/v1/namespaces/{namespace}/secrets")
    assert refused.value.status == 403
    mine = [event for event in apiserver.audit() if event["user"]["username"].endswith(f"{namespace}:nobody")]
    assert [event["responseStatus"]["code"] for event in mine] == [403]


def test_it_comes_back_on_the_same_port_with_what_it_had(apiserver: ApiServer, namespace: str) -> None:
    """A restart of the API server refuses connections meanwhile and loses nothing."""
    apiserver.stop_apiserver()
    with pytest.raises(OSError, match="refused"):
        apiserver.request("GET", f"/api/v1/namespaces/{namespace}")
    apiserver.start_apiserver()
    assert apiserver.request("GET", f"/api/v1/namespaces/{namespace}")["metadata"]["name"] == namespace


def test_an_old_page_expires(apiserver: ApiServer, namespace: str) -> None:
    """The rest of a list whose first page is older than what the API server remembers is answered 410."""
    for number in range(2):
        apiserver.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"page-{number}"}}, namespace=namespace
        )
    path = f"/api/v1/namespaces/{namespace}/configmaps?limit=1"
    token = apiserver.request("GET", path)["metadata"]["continue"]
    apiserver.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "newer"}}, namespace=namespace)
    apiserver.expire()
    with pytest.raises(ApiError) as expired:
        apiserver.request("GET", f"{path}&continue={token}")
    assert expired.value.status == 410
    assert json.loads(expired.value.body)["reason"] == "Expired"


def test_controllers_collect_what_lost_its_owner(apiserver: ApiServer, controllers: Process, namespace: str) -> None:
    """With the controllers beside it a child goes with its owner."""
    assert controllers.alive
    owner = apiserver.request("POST", f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "owner"}})[
        "metadata"
    ]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["uid"]}
    child = {"metadata": {"name": "child", "ownerReferences": [reference]}}
    path = f"/api/v1/namespaces/{namespace}/configmaps"
    apiserver.request("POST", path, child)
    apiserver.request("DELETE", f"{path}/owner")
    apiserver.wait_gone(f"{path}/child")
    account = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
    assert wait_for(lambda: apiserver.exists(account), "account", 10.0)
