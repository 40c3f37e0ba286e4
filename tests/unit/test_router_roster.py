"""The roster: who has which slot, and that no slot is another's before every worker has let go of the first."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kvcommons_router.board import Board
from kvcommons_router.cells import Cells
from kvcommons_router.fleet import Fleet
from kvcommons_router.health import Health
from kvcommons_router.metrics import Layout
from kvcommons_router.roster import Presence, Roster, Wanted
from kvcommons_router.roster_text import RosterReader, RosterWriter
from kvcommons_router.settings import HealthSettings, InstanceSettings, RouterSection
from kvcommons_router.settings_instances import Role


def wanted(name: str, presence: Presence = Presence.READY, *, life: str = "1", host: str = "h", **more: str) -> Wanted:
    """An instance as a source names it."""
    one = InstanceSettings.model_validate({"name": name, "url": f"http://{host}:1", "model": "m", **more})
    return Wanted(one, presence, life, discovered=True)


def changes(roster: Roster, *sources: Wanted) -> list[tuple[str, str]]:
    """What became of the fleet."""
    return [(change.name, change.what) for change in roster.advance(sources)]


def idle(slot: int) -> bool:
    """Nothing is under way anywhere."""
    return False


def test_an_instance_leaves_when_every_worker_has_let_go() -> None:
    """It stays until the workers followed and nothing is under way, and its slot rests until they followed that."""
    roster = Roster(2)
    assert changes(roster, wanted("a"), wanted("b")) == [("a", "added"), ("b", "added")]
    assert changes(roster, wanted("b")) == [("a", "leaving")]
    left = roster.version
    assert not roster.release(left - 1, idle)
    assert not roster.release(left, lambda slot: slot == roster.entries["a"].slot)
    assert [change.what for change in roster.release(left, idle)] == ["gone"]
    assert changes(roster, wanted("b"), wanted("c")) == [("1 instances", "dropped")] or roster.dropped == 1
    assert "c" not in roster.entries
    roster.release(roster.version, idle)
    assert changes(roster, wanted("b"), wanted("c")) == [("c", "added")]
    assert (roster.entries["c"].slot, roster.entries["c"].generation, roster.dropped) == (0, 3, 0)


def test_who_flaps_keeps_its_slot() -> None:
    """Not ready, ready again, leaving and wanted again: the same slot and generation all along."""
    roster = Roster(4)
    roster.advance([wanted("a")])
    first = roster.entries["a"]
    assert changes(roster, wanted("a", Presence.OUT)) == [("a", "out")]
    assert changes(roster, wanted("a")) == [("a", "back")]
    assert changes(roster) == [("a", "leaving")]
    assert changes(roster, wanted("a", Presence.OUT)) == []
    assert changes(roster, wanted("a")) == [("a", "back")]
    last = roster.entries["a"]
    assert (last.slot, last.generation, last.fences) == (first.slot, first.generation, 0)


def test_a_new_incarnation_is_a_fence() -> None:
    """Another uid or restart count, at once or after having been away: what was held is void, once."""
    roster = Roster(4)
    roster.advance([wanted("a", life="u/0")])
    assert changes(roster, wanted("a", Presence.OUT, life="u/1")) == [("a", "restarted"), ("a", "out")]
    assert changes(roster, wanted("a", life="u/1")) == [("a", "back")]
    assert changes(roster, wanted("a", life="v/0", host="other")) == [("a", "restarted"), ("a", "changed")]
    assert roster.entries["a"].fences == 2


def test_who_was_never_ready_takes_no_slot() -> None:
    """A pod that starts, or that is already ending, is nobody yet."""
    roster = Roster(1)
    assert changes(roster, wanted("a", Presence.OUT), wanted("b", Presence.LEAVING), wanted("c")) == [("c", "added")]


def test_too_many_are_dropped_counted_and_come_when_there_is_room() -> None:
    """Those that serve stay; of the others as many as fit are taken, and the rest waits."""
    roster = Roster(2)
    roster.advance([wanted("x")])
    assert changes(roster, wanted("x"), wanted("a"), wanted("b"), wanted("c")) == [
        ("a", "added"),
        ("2 instances", "dropped"),
    ]
    assert (roster.dropped, set(roster.entries)) == (2, {"a", "x"})
    assert changes(roster, wanted("x"), wanted("a"), wanted("b"), wanted("c")) == []
    roster.advance([wanted("x"), wanted("b")])
    roster.release(roster.version, idle)
    roster.release(roster.version, idle)
    assert changes(roster, wanted("x"), wanted("b")) == [("b", "added")]


def test_nothing_new_is_no_new_version() -> None:
    """Workers are only told of what changed."""
    roster = Roster(4)
    roster.advance([wanted("a")])
    version = roster.version
    roster.advance([wanted("a")])
    roster.release(version, idle)
    assert roster.version == version


def test_of_two_sources_the_first_has_the_name() -> None:
    """A listed instance stands over a pod of the same name."""
    roster = Roster(4)
    roster.advance([wanted("a", host="listed"), wanted("a", host="pod")])
    assert roster.entries["a"].settings.host == "listed"


def test_what_is_put_up_is_what_is_read() -> None:
    """All that a worker needs goes through the text, and what did not change is the same object."""
    roster, writer, reader = Roster(4, ("m", "n")), RosterWriter(), RosterReader()
    roster.advance([wanted("a", role="decode", node="n1"), wanted("b", host="[fd00::1]")])
    posted = reader.read(writer.write(roster))
    assert (posted.version, posted.declared, posted.models) == (1, ("m", "n"), {"m": 0, "n": 1})
    assert [(e.slot, e.generation, e.settings, e.presence, e.discovered) for e in posted.entries] == [
        (e.slot, e.generation, e.settings, e.presence, True) for e in roster.entries.values()
    ]
    roster.advance([wanted("a", Presence.OUT, role="decode", node="n1"), wanted("b", host="[fd00::1]")])
    again = reader.read(writer.write(roster))
    assert again.entries[1] is posted.entries[1]
    assert again.entries[0].presence is Presence.OUT


def test_a_board_shows_the_last_whole_text() -> None:
    """Late readers see the last one, a half that is being written is not believed, what is too long changes nothing."""
    board = Board(64)
    assert (board.version, board.read()) == (0, None)
    for number in range(5):
        board.write(b"text %d" % number)
    assert board.read() == (5, b"text 4")
    with pytest.raises(ValueError, match="65 bytes"):
        board.write(b"x" * 65)
    assert board.read() == (5, b"text 4")
    half = board._begin + 64  # the half that version 5 is in, as a writer in the middle of its work leaves it
    board._memory[half : half + 1] = b"X"
    assert board.read() is None
    board.write(b"whole")
    assert board.read() == (6, b"whole")


def fleet_of(roster: Roster) -> Fleet:
    """A worker's fleet by a roster."""
    fleet = Fleet(RouterSection())
    fleet.follow(roster.entries.values(), roster.models, roster.declared)
    return fleet


def test_only_whole_requests_and_decode_are_served() -> None:
    """Of the roles, prefill gets nothing; of presences, only ready ones; a declared model is there with nobody."""
    roster = Roster(8, ("m", "empty"))
    roster.advance([wanted("p", role="prefill"), wanted("d", role="decode"), wanted("a"), wanted("o")])
    roster.advance([wanted("p", role="prefill"), wanted("d", role="decode"), wanted("a"), wanted("o", Presence.OUT)])
    fleet = fleet_of(roster)
    assert [one.name for one in fleet.groups["m"].usable] == ["a", "d"]
    assert (fleet.groups["empty"].usable, fleet.models) == ((), ("m", "empty"))
    assert {one.name: one.settings.role for one in fleet.instances}["p"] is Role.PREFILL


def test_an_instance_that_comes_back_is_remembered() -> None:
    """What was learnt of it is kept by its name; a replica that was never seen begins with what its sibling taught."""
    roster = Roster(8)
    roster.advance([wanted("a"), wanted("b")])
    fleet = fleet_of(roster)
    first = next(one for one in fleet.instances if one.name == "a")
    for _ in range(8):
        first.learner.add(1000, 2.0)
    learnt = first.candidate.prefill
    roster.advance([wanted("b")])
    roster.release(roster.version, idle)
    assert fleet.follow(roster.entries.values(), roster.models, ()).gone == [first]
    assert first.gone
    roster.release(roster.version, idle)
    roster.advance([wanted("a"), wanted("b"), wanted("c")])
    fleet.follow(roster.entries.values(), roster.models, ())
    found = {one.name: one for one in fleet.instances}
    assert found["a"] is not first
    assert found["a"].candidate.prefill is learnt
    assert found["a"].learner.taught
    assert not found["b"].learner.taught
    roster.advance([wanted("a"), wanted("b"), wanted("c"), wanted("d")])
    fleet.follow(roster.entries.values(), roster.models, ())
    newest = next(one for one in fleet.instances if one.name == "d")
    assert newest.candidate.prefill == learnt
    assert newest.candidate.prefill is not learnt


def test_a_group_outlives_its_members() -> None:
    """Requests under way hold their model's group: it stays the same object, and is empty when all have left."""
    roster = Roster(8, ("m",))
    roster.advance([wanted("a")])
    fleet = fleet_of(roster)
    layout = Layout(1, 8)
    health = Health(layout, Cells(1, layout.columns), 0, 0, HealthSettings())
    group = fleet.groups["m"]
    roster.advance([])
    fleet.follow(roster.entries.values(), roster.models, roster.declared)
    fleet.refresh(health, 0)
    assert (fleet.groups["m"], group.usable) == (group, ())
    roster.advance([wanted("a")])
    fleet.follow(roster.entries.values(), roster.models, roster.declared)
    assert [one.name for one in group.usable] == ["a"]


class Workers(RuleBasedStateMachine):
    """A roster and two workers that follow late, crash, and have requests under way."""

    NAMES = ("a", "b", "c", "d")

    def __init__(self) -> None:
        super().__init__()
        self.roster = Roster(3)
        self.history: dict[int, dict[int, tuple[str, int, Presence]]] = {0: {}}
        self.applied = [0, 0]
        self.busy: list[dict[int, tuple[str, int]]] = [{}, {}]
        self.lives = dict.fromkeys(self.NAMES, 0)

    def _note(self) -> None:
        entries = self.roster.entries.values()
        self.history[self.roster.version] = {e.slot: (e.settings.name, e.generation, e.presence) for e in entries}

    @rule(states=st.tuples(*[st.sampled_from([None, *Presence])] * 4))
    def sources_say(self, states: tuple[Presence | None, ...]) -> None:
        named = zip(self.NAMES, states, strict=True)
        self.roster.advance([wanted(name, state) for name, state in named if state is not None])
        self._note()

    @rule()
    def time_passes(self) -> None:
        self.roster.release(min(self.applied), lambda slot: any(slot in busy for busy in self.busy))
        self._note()

    @rule(worker=st.integers(0, 1))
    def a_worker_follows(self, worker: int) -> None:
        self.applied[worker] = self.roster.version

    @rule(worker=st.integers(0, 1))
    def a_worker_crashes(self, worker: int) -> None:
        self.applied[worker] = 0
        self.busy[worker].clear()

    @precondition(lambda self: any(self.applied))
    @rule(worker=st.integers(0, 1), slot=st.integers(0, 2))
    def a_request_begins(self, worker: int, slot: int) -> None:
        entry = self.history[self.applied[worker]].get(slot)
        if entry is not None and entry[2] is Presence.READY:
            self.busy[worker][slot] = entry[:2]

    @rule(worker=st.integers(0, 1), slot=st.integers(0, 2))
    def a_request_ends(self, worker: int, slot: int) -> None:
        self.busy[worker].pop(slot, None)

    @invariant()
    def nobody_has_two_tenants_in_a_slot(self) -> None:
        for slot in range(3):
            tenants = {busy[slot] for busy in self.busy if slot in busy}
            seen = [self.history[version].get(slot) for version in {*self.applied, self.roster.version} if version]
            tenants |= {one[:2] for one in seen if one is not None}
            assert len(tenants) <= 1, tenants

    @invariant()
    def a_slot_has_one_name(self) -> None:
        slots = [entry.slot for entry in self.roster.entries.values()]
        assert len(slots) == len(set(slots))


Workers.TestCase.settings = settings(deadline=None, max_examples=150, stateful_step_count=40)
TestWorkers = Workers.TestCase
