"""Why less than all of a prompt was reused, in words: the reasons that connectors report."""

from __future__ import annotations

from typing import Final

EXPLANATIONS: Final[dict[str, str]] = {
    "": "every whole chunk of the prompt was reused",
    "not_found": "no chunk of this prefix was here: it is new, was evicted (watch kvcommons_node_removed_chunks_total), or was cached under another salt or model",
    "partly_found": "the prefix was here up to a point: the text differs behind it, or its end was evicted",
    "node_away": "the engine had no connection to its cache node: is the node running?",
    "no_lease": "the node had too many leases open (node.leases_max), or the chunks went away while it answered",
    "load_failed": "the copy into the engine failed or came too late, and the text was computed: see the engine's log",
    "unsalted": "a node of several tenants caches nothing for a request without a salt: set the tenant's key at the router",
    "reset": "the engine's weights or caches were reset while the request ran",
    "block_table": "the engine gave no block table for it, so nothing could be moved",
    "foreign_load": "another connector loaded a part of it, which is not ours to store",
    "prompt_logprobs": "log-probabilities of the prompt need every position computed",
    "starting": "the engine's workers had not yet said what they are",
    "usage": "the answer says how much was reused and not why not more: no connector of its engine reports to this router",
    "ranks_differ": "the engine's ranks do not agree about the model: they must run the same build and weights",
}
LOOKUP_FAILED: Final = (
    "the node did not answer the question in time, or refused it: see the connector's setting of that limit"
)
NOT_CACHEABLE: Final = (
    "this engine or request can't be cached; the reasons are listed where the connector is documented"
)


def explained(reason: str) -> str:
    """A reason in words."""
    return EXPLANATIONS.get(reason) or (LOOKUP_FAILED if reason.startswith("lookup_") else NOT_CACHEABLE)
