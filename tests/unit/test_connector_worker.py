"""The worker's side of the connector, against a fake transfer."""

from __future__ import annotations

from array import array

import pytest
from connector_fakes import FakeSession, FakeTransfer
from kvcommons_connector.metadata import LoadPlan, RankReport, StepPlan, StorePlan, WorkerReport
from kvcommons_connector.stats import Counters
from kvcommons_connector.worker import WorkerCore

LAYERS = {"layer.0": 0, "layer.1": 1, "layer.1.shared": 1}


@pytest.fixture(name="transfer")
def _transfer() -> FakeTransfer:
    return FakeTransfer()


@pytest.fixture(name="worker")
def _worker(transfer: FakeTransfer) -> WorkerCore:
    return WorkerCore(FakeSession(), transfer, LAYERS, Counters(), load_ms_max=1000, stores=True)


def load(job: int, *, asynchronous: bool = False) -> LoadPlan:
    """A load into blocks job*10 and job*10+1."""
    return LoadPlan(f"r{job}", job, 77, 0, array("I", [job * 10, job * 10 + 1]), asynchronous)


def store(job: int) -> StorePlan:
    """A store of one chunk."""
    return StorePlan(job, 0, bytes(32), bytes(32), array("I", [1, 2]), [])


def run_step(worker: WorkerCore, plan: StepPlan, layers: tuple[str, ...] = tuple(LAYERS)) -> set[int]:
    """One step as vLLM runs it; the blocks that were not loaded."""
    worker.begin_step(plan)
    worker.start_loads(plan)
    for name in layers:
        worker.wait_layer(name)
    worker.end_step(plan)
    return worker.take_invalid_blocks()


def test_a_step_waits_for_each_layer_of_its_loads_and_then_stores(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """Layers that share a tensor are one."""
    assert run_step(worker, StepPlan(loads=[load(1)], stores=[store(2)])) == set()
    assert set(transfer.waited_layers) == {0, 1}
    assert transfer.stored == [2]


def test_a_step_without_loads_waits_for_no_layer(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """The hooks of the layers are free when nothing is loaded."""
    run_step(worker, StepPlan(stores=[store(2)]))
    assert transfer.waited_layers == []


def test_a_refused_load_is_reported_and_its_step_stores_nothing(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """KV computed over blocks that were not filled must never be stored, whoever it belongs to."""
    transfer.load_status[1] = "gone"
    assert run_step(worker, StepPlan(loads=[load(1), load(3)], stores=[store(2)])) == {10, 11}
    assert transfer.stored == []
    assert worker.take_stores_done() == {2: 1}
    assert run_step(worker, StepPlan(stores=[store(4)])) == set()
    assert transfer.stored == [4]


@pytest.mark.parametrize("when", ["refused", "underway", "late"])
def test_a_failed_load_is_known_and_stores_nothing_where_the_step_ends_late(
    worker: WorkerCore, transfer: FakeTransfer, when: str
) -> None:
    """With speculative decoding vLLM asks for failed blocks after the forward, and calls wait_for_save after the draft."""
    if when == "refused":
        transfer.load_status[1] = "gone"
    elif when == "underway":
        transfer.end_status[1] = "gone"
    else:
        transfer.layer_status = "timed_out"
    plan = StepPlan(loads=[load(1)], stores=[store(2)])
    worker.begin_step(plan)
    worker.start_loads(plan)
    for name in LAYERS:
        worker.wait_layer(name)
    assert worker.take_invalid_blocks() == {10, 11}
    worker.end_step(plan)
    assert transfer.stored == []
    transfer.layer_status = "ok"
    assert run_step(worker, StepPlan(stores=[store(3)])) == set()
    assert transfer.stored == [3]


def test_a_forward_that_failed_stores_nothing(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """vLLM ends the step for the connector even while the forward's error is on its way up: half of the layers may be unwritten."""
    worker.begin_step(StepPlan(stores=[store(2)]))
    worker.end_step(StepPlan(stores=[store(2)]), computed=False)
    assert transfer.stored == []
    assert worker.take_stores_done() == {2: 1}


def test_a_load_that_fails_underway_is_reported(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """A checksum that is wrong ends as a failed load."""
    transfer.end_status[1] = "gone"
    assert run_step(worker, StepPlan(loads=[load(1)], stores=[store(2)])) == {10, 11}
    assert transfer.stored == []


def test_a_layer_that_was_read_too_early_fails_the_step(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """A wait that ran out means that attention read half a layer; a later success does not mend that."""
    transfer.layer_status = "timed_out"
    assert run_step(worker, StepPlan(loads=[load(1)])) == {10, 11}
    transfer.layer_status = "ok"
    assert run_step(worker, StepPlan(loads=[load(3)])) == set()


def test_a_model_that_does_not_call_the_hooks_is_found_out(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """The first load fails, for nobody waited for it; from then on a load ends before the forward begins."""
    assert run_step(worker, StepPlan(loads=[load(1)]), layers=("layer.0",)) == {10, 11}
    assert run_step(worker, StepPlan(loads=[load(3)]), layers=()) == set()


def test_only_what_a_forward_waits_for_layer_by_layer_is_loaded_so(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """A load between steps is wanted as a whole; so is every load of a model that does not call the hooks."""
    run_step(worker, StepPlan(loads=[load(1), load(2, asynchronous=True)]), layers=())
    run_step(worker, StepPlan(loads=[load(3)]), layers=())
    assert transfer.loaded_whole == [2, 3]


def test_a_copy_that_does_not_end_stops_the_engine_rather_than_corrupt_it(
    worker: WorkerCore, transfer: FakeTransfer
) -> None:
    """A copy that may still write must not be followed by anything."""
    transfer.end_status[1] = "timed_out"
    with pytest.raises(RuntimeError, match="has not ended"):
        run_step(worker, StepPlan(loads=[load(1)]))


def test_loads_between_steps_are_reported_when_they_end(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """A failed one is in both sets, as vLLM wants it; none is reported twice."""
    transfer.load_status[2] = "disconnected"
    run_step(
        worker, StepPlan(loads=[load(1, asynchronous=True), load(2, asynchronous=True), load(3, asynchronous=True)])
    )
    assert worker.take_transfers() == ({"r2"}, {"r2"})
    transfer.finished_loads = [(1, "ok", 0, 0), (3, "gone", 0, 0)]
    assert worker.take_transfers() == ({"r1", "r3"}, {"r3"})
    assert worker.take_transfers() == (set(), set())


def test_fences_are_waited_for_before_the_step(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """Exactly the named stores."""
    worker.begin_step(StepPlan(fence_jobs=[4, 9]))
    assert transfer.waited_stores == [4, 9]


def test_every_store_ends_exactly_once_however_it_ends(worker: WorkerCore, transfer: FakeTransfer) -> None:
    """Committed, dropped because the queue is full, or not this rank's: the scheduler's side hears of each."""
    run_step(worker, StepPlan(stores=[store(1)]))
    transfer.finished_stores = [(1, "full", 0, 0)]
    transfer.store_status = "full"
    run_step(worker, StepPlan(stores=[store(2)]))
    assert worker.take_stores_done() == {1: 1, 2: 1}
    assert worker.take_stores_done() == {}
    other = WorkerCore(FakeSession(), transfer, LAYERS, Counters(), load_ms_max=1000, stores=False)
    run_step(other, StepPlan(stores=[store(3)]))
    assert other.take_stores_done() == {3: 1}


def test_reports_of_ranks_add_up() -> None:
    """A store that two of three ranks ended counts two."""
    report = WorkerReport({1: 1}, [RankReport(0, b"", 0, (), "")])
    report.merge(WorkerReport({1: 1, 2: 1}, [RankReport(1, b"", 0, (), "")]))
    assert report.stores_done == {1: 2, 2: 1}
    assert [rank.rank for rank in report.ranks] == [0, 1]
