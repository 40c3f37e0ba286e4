"""Refusals of what names some chunks, of long work, and of calls to other nodes."""

from __future__ import annotations

from kvcommons_node.api.models import ErrorDetail
from kvcommons_node.api.refusals import Refusal, shortened

NAMES_SHOWN_MAX = 20


def no_index() -> Refusal:
    return Refusal(
        409,
        ErrorDetail(
            type="invalid_request",
            message="this node is in no index, so it knows no other",
            remedy="set index.url to the pool's Redis, or ask each node",
        ),
    )


def unknown_model(model: str, known: list[str]) -> Refusal:
    return _unknown(
        "model",
        "no engine said that it serves this model",
        model,
        f"known: {', '.join(known[:NAMES_SHOWN_MAX]) or 'none yet'}; engines say it when a request ends; `kvcommons stats` lists fingerprints",
    )


def unknown_tier(name: str, known: list[str], field: str = "tiers") -> Refusal:
    return _unknown(field, "this node has no such tier", name, f"known: {', '.join(known)}")


def _unknown(field: str, message: str, value: str, remedy: str) -> Refusal:
    return Refusal(
        404,
        ErrorDetail(type="not_found", message=message, field=field, value=shortened(value), remedy=remedy),
    )


def same_place(name: str) -> Refusal:
    return _not_so("target", name, "it is the source too", "name another place: GET /v1/stats lists the tiers")


def not_past_memory(source: str, target: str) -> Refusal:
    return _not_so(
        "target", target, f"nothing goes from {source} there but through memory", "move it to memory, and then on"
    )


def not_written_to(target: str, first: str) -> Refusal:
    return _not_so("target", target, "what leaves memory is written to the first tier", f"name {first}")


def _not_so(field: str, value: str, message: str, remedy: str) -> Refusal:
    return Refusal(
        409, ErrorDetail(type="invalid_request", message=message, field=field, value=shortened(value), remedy=remedy)
    )


def unknown_node(name: str, known: list[str], field: str = "node") -> Refusal:
    return _unknown(
        field,
        "no node of this name is known",
        name,
        f"known: {', '.join(known[:NAMES_SHOWN_MAX]) or 'none'}; `kvcommons stats --all-nodes` lists them",
    )


def to_itself(name: str) -> Refusal:
    return _not_so("node", name, "the chunks are on this node already", "name another node, or leave `node` out")


def not_there_at_once(target: str) -> Refusal:
    return _not_so(
        "target", target, "another node takes chunks into its memory", "leave it out; then move them on that node"
    )


def no_peers() -> Refusal:
    return Refusal(
        409,
        ErrorDetail(
            type="invalid_request",
            message="this node has no peers, so that nothing goes from node to node",
            remedy="set node.peers of every node (docs: peers)",
        ),
    )


def age_without_memory(tiers: list[str]) -> Refusal:
    return Refusal(
        409,
        ErrorDetail(
            type="invalid_request",
            message="a tier does not know how old a chunk is",
            field="tiers",
            value=shortened(tiers),
            remedy="name memory too: what is cleared there by age is cleared from the tiers as well",
        ),
    )


def no_engine() -> Refusal:
    return Refusal(
        409,
        ErrorDetail(
            type="invalid_request",
            message="this node knows no engine by its HTTP address",
            remedy="set node.engine_urls to the router or the engines; with an index those are known that a router lists with this node",
        ),
    )


def not_tokenized(why: str) -> Refusal:
    return Refusal(
        503,
        ErrorDetail(
            type="busy",
            message=f"no engine made tokens of the text: {why}",
            field="text",
            remedy="give tokens; node.engine_urls must name an engine that serves /tokenize",
        ),
    )


def job_name_taken(name: str, kind: str, state: str) -> Refusal:
    return Refusal(
        409,
        ErrorDetail(
            type="invalid_request",
            message=f"a {kind} job of this name is {state}, and it was asked for something else",
            field="name",
            value=shortened(name),
            remedy="give another name, or cancel that job first",
        ),
    )


def too_many_jobs(most: int) -> Refusal:
    return Refusal(
        503,
        ErrorDetail(type="busy", message=f"{most} jobs run or wait already", remedy="cancel one, or try again later"),
        {"Retry-After": "10"},
    )


def no_job(job: str) -> Refusal:
    return _unknown(
        "job", "there is no such job, or it is long over", job, "GET /v1/jobs (`kvcommons jobs`) lists them"
    )


def another_node(asked: str, node: str) -> Refusal:
    return Refusal(
        421,
        ErrorDetail(
            type="invalid_request",
            message=f"this is {node}, and the call was for another node",
            field="X-Kvcommons-Node",
            value=shortened(asked),
            remedy="set node.address of that node to where its control API is reached",
        ),
    )
