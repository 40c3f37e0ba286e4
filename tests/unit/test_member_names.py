"""What a pod's members are called, by those who register them and by those who fence them."""

import pytest
from fake_kube import pod
from kvcommons_operator.observed import Pod
from kvcommons_operator.reconcile.fence import members_of
from kvcommons_router.chains import member_name
from kvcommons_router.pods import view_of
from kvcommons_router.settings import KubernetesSettings

LABELS = {"app.kubernetes.io/component": "engine"}


@pytest.mark.parametrize("ranks", ["1", "2", "4", "many"])
def test_the_operator_fences_what_the_router_registers(ranks: str) -> None:
    """Every engine of a pod is fenced by the name that it has in the index, and so is a cache node beside it."""
    one = pod("p", labels=LABELS, annotations={"kvcommons.io/data-parallel-size": ranks}, namespace="n")
    settings = KubernetesSettings(namespace="n", selector="a=b", model="m")
    registered = {member_name(wanted.settings.name) for wanted in view_of(one, settings).wanted}
    assert set(members_of(Pod.parse(one))) == registered | {"p"}


def test_a_cache_node_of_a_machine_is_fenced_by_its_machine() -> None:
    """A DaemonSet's pod comes and goes; the member is the machine's."""
    one = pod("p", labels={"app.kubernetes.io/component": "cache-node"}, namespace="n")
    assert members_of(Pod.parse(one)) == ("node-of-p",)
