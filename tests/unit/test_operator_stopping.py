"""An operator that is told to stop ends promptly, whatever it was waiting for."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from fake_api import FakeApi, fake_api

SECRETS = "/api/v1/namespaces/ns/secrets"
CRDS = "/apis/kvcommons.io/v1alpha1"
SECONDS_MAX = 60.0
ASKED_MORE_MAX = 2
"""Of what it asks every few seconds: what may be under way when the signal comes. Who waits on asks four times or more."""
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{{name: c, cluster: {{server: "{url}"}}}}]
users: [{{name: u, user: {{}}}}]
contexts: [{{name: x, context: {{cluster: c, user: u}}}}]
current-context: x
"""


@pytest.mark.parametrize("waits_for", [SECRETS, CRDS])
def test_sigterm_ends_an_operator_that_waits(waits_for: str, tmp_path: Path) -> None:
    """While its root secret may not be read, or its CRDs are not there, a leader gives its Lease back and ends at once, with status 0."""

    def asked(api: FakeApi) -> int:
        return sum(path.startswith(waits_for) for _, path, _ in api.asked)

    async def test() -> None:
        async with fake_api() as (api, _):
            api.forbidden = ("/kvcommons-operator-root", "/secrets") if waits_for == SECRETS else ()
            config = tmp_path / "kubeconfig"
            config.write_text(KUBECONFIG.format(url=api.url))
            given = {
                "--kubeconfig": str(config),
                "--own-namespace": "ns",
                "--http-host": "127.0.0.1",
                "--http-port": "0",
            }
            words = [word for pair in given.items() for word in pair]
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "kvcommons_operator", *words, stderr=asyncio.subprocess.PIPE
            )
            assert process.stderr is not None
            try:
                async with asyncio.timeout(SECONDS_MAX):
                    while not asked(api):  # noqa: ASYNC110 - another process has no way to call back
                        await asyncio.sleep(0.05)
                before = asked(api)
                process.terminate()
                _, said = await asyncio.wait_for(process.communicate(), SECONDS_MAX)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            assert asked(api) - before <= ASKED_MORE_MAX
            assert process.returncode == 0, said.decode()
            (lease,) = api.objects["/apis/coordination.k8s.io/v1/namespaces/ns/leases"].values()
            assert not lease["spec"]["holderIdentity"]

    asyncio.run(test())
