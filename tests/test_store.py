"""Sessions in a store: the same edits, from two calls' values in memory."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify import (
    Baseline,
    BaselineError,
    BaselineStore,
    ConfigError,
    Schedule,
    Session,
    SparseModule,
    StoreError,
    load_baseline,
    save_baseline,
    sparsify,
)
from sparsify.baseline import memory_of
from sparsify.store import Calls
from sparsify.store.values_file import Tensors, ValuesFile
from tests.small import corner, small_inputs, small_unet
from tests.test_session import STEPS, module, sample

START = small_inputs()[0]
EDITED = torch.where(corner(), START + 1, START)
Tiers = dict[str, Any]


def recorded(sparse: SparseModule, store: BaselineStore | None, **options: Any) -> Session:
    with sparse.recording(store=store, **options) as session:
        sample(sparse, START)
    return session


def edited(sparse: SparseModule, session: Session, start: Tensor = EDITED) -> Tensor:
    with session.editing(corner()):
        return sample(sparse, start)


@pytest.fixture(scope="module")
def sparse() -> SparseModule:
    return module()


@pytest.fixture(scope="module")
def session(sparse: SparseModule) -> Session:
    return recorded(sparse, None)


@pytest.fixture(scope="module")
def call(session: Session) -> Baseline:
    return session.calls[0]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[BaselineStore]:
    """On disk alone."""
    with BaselineStore(disk=None, folder=tmp_path) as own:
        yield own


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


# -- what is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tiers",
    [
        {"host": None},
        {"disk": None},
        {"host": "1 MiB", "disk": "20 MiB"},
        {"device": 1, "disk": 1e9},
    ],
    ids=str,
)
def test_an_edit_from_a_store_is_that_from_memory(
    tiers: Tiers, sparse: SparseModule, session: Session, tmp_path: Path
) -> None:
    """Bit for bit, also of edits of edits, and of what is left for one mask."""
    with BaselineStore(**tiers, folder=tmp_path) as store:
        own = recorded(sparse, store, calls=STEPS)
        assert own.nbytes == session.nbytes == sum(store.used.values())
        assert torch.equal(edited(sparse, own), edited(sparse, session))
        for _ in range(2):
            with own.editing(corner(), keep=True) as editing:
                sample(sparse, EDITED)
            with session.editing(corner(), keep=True) as other:
                sample(sparse, EDITED)
            assert editing.session.store is store and other.session.store is None
            assert torch.equal(edited(sparse, editing.session), edited(sparse, other.session))
        del editing
        own.restrict(corner())
        assert own.nbytes == sum(store.used.values()) < session.nbytes
        assert torch.equal(edited(sparse, own), edited(sparse, session))


def test_a_network_of_diffusers(tmp_path: Path) -> None:
    """Of Stable Diffusion's kind, with two items of guidance."""
    torch.manual_seed(0)
    kinds = ("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=kinds[0],
        up_block_types=kinds[1],
        cross_attention_dim=32,
    )
    sparse = sparsify(unet.eval(), dilate=1, backend="eager")
    latents, context, mask = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 32), corner()
    new = torch.where(mask, torch.randn_like(latents), latents)

    @torch.no_grad()
    def run(start: Tensor) -> Tensor:
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(4)
        for timestep in scheduler.timesteps:
            noise = sparse(start, timestep, context).sample
            start = scheduler.step(noise, timestep, start).prev_sample
        return start

    pictures = []
    with BaselineStore(disk=None, folder=tmp_path) as store:
        for where in (None, store):
            with sparse.recording(store=where) as session:
                run(latents)
            with session.editing(mask):
                pictures.append(run(new))
        assert store.fetches == {"ahead": 3, "late": 1}
    assert torch.equal(*pictures)


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.bool, torch.int64, torch.uint8]


@st.composite
def values(draw: st.DrawFn) -> dict[str, Tensor]:
    """Maps of any dtype, scalars and empty ones among them; some are one memory."""
    kinds = st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3))
    made: dict[str, Tensor] = {"baseline.0": torch.arange(float(draw(st.integers(1, 400))))}
    for number, (dtype, shape) in enumerate(draw(st.lists(kinds, max_size=4)), 1):
        made[f"baseline.{number}"] = torch.randint(0, 99, shape).to(dtype)
        if draw(st.booleans()):
            made[f"condition.{number}"] = made[f"baseline.{number}"].detach()
    return made


BUDGETS = st.one_of(st.just(0), st.integers(0, 6000), st.none())


@settings(deadline=None)
@given(st.data())
def test_what_is_fetched_is_what_was_kept(call: Baseline, data: st.DataObject) -> None:
    """Whatever the budgets, and in whatever order baselines are kept, read and dropped."""
    budgets = {name: data.draw(BUDGETS, name) for name in ("host", "disk")}
    if not any(budget != 0 for budget in budgets.values()):
        return
    with BaselineStore(**budgets) as store:
        kept, last = list[tuple[Baseline, dict[str, Tensor]]](), None
        for _ in range(data.draw(st.integers(1, 12))):
            act = data.draw(st.sampled_from(["keep", "keep", "read", "drop"]))
            if act == "keep":
                own = data.draw(values())
                copies = {name: value.clone() for name, value in own.items()}
                try:
                    last = store.keep(replace(call, values=own), last)
                except StoreError:
                    continue
                kept.append((last, copies))
            elif kept:
                number = data.draw(st.integers(0, len(kept) - 1))
                one, copies = kept[number]
                assert_equal(one.fetched(), copies)
                if act == "drop":
                    del kept[number], one
                    last = None
            for name, budget in budgets.items():
                assert budget is None or store.used[name] <= budget
        for one, copies in kept:
            assert_equal(one.fetched(), copies)


def assert_equal(got: Any, want: dict[str, Tensor]) -> None:
    assert set(got) == set(want)
    for name, value in want.items():
        assert got[name].dtype == value.dtype and torch.equal(got[name], value)


def test_values_of_one_memory_are_kept_once(store: BaselineStore, call: Baseline) -> None:
    """And come back as two tensors of one memory."""
    own = torch.randn(1000)
    kept = store.keep(replace(call, values={"a": own, "b": own.detach(), "c": own[:10]}))
    assert store.used["disk"] == kept.nbytes == 4040
    got = kept.fetched()
    assert got["a"] is not got["b"] and memory_of(got["a"]) == memory_of(got["b"])
    assert torch.equal(got["c"], own[:10])


def test_what_was_read_last_stays(call: Baseline, tmp_path: Path) -> None:
    """Where there is room for two, the third sends down the one that was not read since."""
    made = [replace(call, values={"a": torch.randn(1000)}) for _ in range(3)]
    with BaselineStore(host=8000, disk=None, folder=tmp_path) as store:
        first, second = store.keep(made[0]), store.keep(made[1])
        first.fetched()
        third = store.keep(made[2])
        assert store.used == {"device": 0, "host": 8000, "disk": 4000}
        for one, fetches in ((first, 0), (third, 0), (second, 1)):
            one.fetched()
            assert store.fetches["late"] == fetches


# -- memory --------------------------------------------------------------------------------------


def test_two_calls_are_in_memory(
    sparse: SparseModule, store: BaselineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any time of an edit; once it is over, at most one, and none without the session."""
    own, alive = recorded(sparse, store), set[int]()
    largest, read = 0, ValuesFile.read

    def watched(self: ValuesFile, pinned: bool = False) -> Tensors:
        nonlocal largest
        tensors = read(self, pinned)
        first, key = next(iter(tensors.values())), len(seen)
        seen.append(key)
        alive.add(key)
        weakref.finalize(first, alive.discard, key)
        largest = max(largest, len(alive))
        return tensors

    seen: list[int] = []
    monkeypatch.setattr(ValuesFile, "read", watched)
    for start in (EDITED, START, EDITED):
        edited(sparse, own, start)
        assert len(alive) <= 1
    with pytest.warns(UserWarning, match="was left after call 3"), own.editing(corner()):
        sample_some(sparse, 3)
    edited(sparse, own)
    assert len(seen) == 4 * STEPS + 4 and largest == 2
    del own
    assert not alive


def sample_some(sparse: SparseModule, steps: int) -> None:
    """The first steps of a run."""

    class Left(Exception):
        pass

    count = 0

    def counted(*args: Any) -> Tensor:
        nonlocal count
        if count == steps:
            raise Left
        count += 1
        result: Tensor = sparse(*args)
        return result

    with pytest.raises(Left):
        sample(counted, EDITED)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_stays_flat(sparse: SparseModule, store: BaselineStore, tmp_path: Path) -> None:
    """Of 200 edits, each of the one before. A call's values that stayed would be seen."""
    with sparse.recording(store=store) as own:
        sample(sparse, START, steps=2)
    used, count = [], []
    for number in range(201):
        new = torch.where(corner(), START + number / 200, START)
        with own.editing(corner(), keep=True) as editing:
            sample(sparse, new, steps=2)
        own = editing.session
        del editing
        used.append(resident())
        count.append((store.used["disk"], len(files(tmp_path))))
    call = own.calls[-1].nbytes
    assert len(set(count[1:])) == 1
    assert used[-1] - used[20] < 180 * call / 2


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_what_nobody_refers_to_is_gone(sparse: SparseModule, tmp_path: Path) -> None:
    store = BaselineStore(disk=None, folder=tmp_path)
    first, second = recorded(sparse, store), recorded(sparse, store)
    assert len(files(tmp_path)) == 2 * STEPS
    rest, first = first[5:], second
    assert len(files(tmp_path)) == 2 * STEPS - 5 and rest.store is store
    del store, first, second
    assert len(files(tmp_path)) == STEPS - 5
    assert all(value.isfinite().all() for value in rest.calls[-1].values.values())
    del rest
    assert not list(tmp_path.iterdir())


# -- what comes next -----------------------------------------------------------------------------


def test_the_next_call_is_fetched_meanwhile(sparse: SparseModule, store: BaselineStore) -> None:
    own = recorded(sparse, store)
    for number in range(1, 4):
        edited(sparse, own)
        assert store.fetches == {"late": number, "ahead": number * (STEPS - 1)}
    store.fetches.clear()
    with own[3:].editing(corner()):
        sample(sparse, EDITED, skip=3)
    assert store.fetches == {"late": 1, "ahead": STEPS - 4}


def test_steps_that_a_schedule_leaves_out_are_left_out_next_time(
    sparse: SparseModule, store: BaselineStore
) -> None:
    own, schedule, counts = recorded(sparse, store), Schedule.every(3, STEPS), []
    for _ in range(2):
        store.fetches.clear()
        with own.editing(corner(), schedule):
            sample(sparse, EDITED)
        counts.append(dict(store.fetches))
    assert counts == [{"late": 3}, {"late": 1, "ahead": 2}]


def test_a_recording_by_a_schedule_keeps_its_key_steps(
    sparse: SparseModule, store: BaselineStore, tmp_path: Path
) -> None:
    schedule = Schedule.every(3, STEPS)
    own = recorded(sparse, store, schedule=schedule)
    assert len(files(tmp_path)) == len(schedule.keys)
    with own.editing(corner(), schedule):
        got = sample(sparse, EDITED)
    assert store.fetches == {"late": 1, "ahead": 2}
    in_memory = recorded(sparse, None, schedule=schedule)
    with in_memory.editing(corner(), schedule):
        assert torch.equal(got, sample(sparse, EDITED))


def test_sessions_of_several_threads_share_a_store(
    sparse: SparseModule, session: Session, tmp_path: Path
) -> None:
    """Two edit the same session, others their own, recorded meanwhile; nothing has much room."""
    size = session.nbytes
    want = [edited(sparse, session, EDITED + number) for number in range(4)]
    with BaselineStore(host=size // 2, disk=5 * size, folder=tmp_path) as store:
        shared, start = recorded(sparse, store), threading.Barrier(4)

        def run(number: int) -> bool:
            start.wait()
            for _ in range(3):
                own = shared if number < 2 else recorded(sparse, store)
                with torch.no_grad():
                    got = edited(sparse, own, EDITED + number)
                if not torch.equal(got, want[number]):
                    return False
                assert store.used["host"] <= size // 2 and store.used["disk"] <= 5 * size
            return True

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(run, range(4)))


def test_what_is_used_is_told_while_others_keep(call: Baseline) -> None:
    interval, over = sys.getswitchinterval(), threading.Event()

    def keep(store: BaselineStore) -> None:
        while not over.is_set():
            store.keep(replace(call, values={"a": torch.zeros(1)}))

    with BaselineStore(host=None) as store, ThreadPoolExecutor(2) as pool:
        sys.setswitchinterval(1e-6)
        try:
            keeping = [pool.submit(keep, store) for _ in range(2)]
            assert all(0 <= store.used["host"] <= 8 for _ in range(20_000))
        finally:
            over.set()
            sys.setswitchinterval(interval)
        for one in keeping:
            one.result()


# -- files ---------------------------------------------------------------------------------------


def test_stored_baselines_are_data(
    sparse: SparseModule, session: Session, store: BaselineStore, tmp_path: Path
) -> None:
    """They can be pickled, copied, saved and loaded, and outlive the store then."""
    own, want = recorded(sparse, store), edited(sparse, session)
    one = own.calls[0]
    save_baseline(one, tmp_path / "one")
    copies = [pickle.loads(pickle.dumps(one)), copy.deepcopy(one), load_baseline(tmp_path / "one")]
    own.save(tmp_path / "session")
    store.close()
    for other in copies:
        assert_equal(other.values, dict(session.calls[0].values))
    assert torch.equal(edited(sparse, sparse.load_session(tmp_path / "session")), want)
    with BaselineStore(disk=session.nbytes, folder=tmp_path / "store") as again:
        loaded = sparse.load_session(tmp_path / "session", store=again)
        assert torch.equal(edited(sparse, loaded), want) and loaded.store is again
        assert again.used["disk"] == session.nbytes
    with (
        BaselineStore(host=session.nbytes - 1) as narrow,
        pytest.raises(StoreError, match=f"{STEPS} calls of .* no room: host="),
    ):
        sparse.load_session(tmp_path / "session", store=narrow)


def test_other_weights_and_models_are_refused(store: BaselineStore) -> None:
    sparse, other = module(), sparsify(small_unet(), backend="eager", dilate=2)
    own = recorded(sparse, store)
    with pytest.raises(BaselineError, match="another model"):
        edited(other, Session(other._engine, own.calls))
    with torch.no_grad():
        sparse.enter.weight.mul_(2)
    with pytest.raises(BaselineError, match="weights changed"):
        edited(sparse, own)


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_what_is_damaged_is_refused(
    damage: str, sparse: SparseModule, store: BaselineStore, tmp_path: Path
) -> None:
    """Also where it is fetched ahead."""
    own = recorded(sparse, store)
    victim = files(tmp_path)[3]
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(content if damage == "changed" else content[:-1])
    said = "cannot be read" if damage == "missing" else "was changed after it was written"
    with pytest.raises(StoreError, match=rf"{victim.name} {said}.*record again"):
        edited(sparse, own)


def test_a_file_cut_short_is_refused_whatever_its_memory_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, path = torch.arange(10.0), tmp_path / "own.safetensors"
    file = ValuesFile(path, {"own": own})
    path.write_bytes(path.read_bytes()[:-1])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda *_, **__: own.clone())
        with pytest.raises(StoreError, match="was changed after it was written"):
            file.read()


def test_a_write_that_fails_leaves_nothing(
    call: Baseline, store: BaselineStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = dict(call.fetched())
    before = store.keep(replace(call, values=own))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(StoreError, match=r"No space left.*another folder"):
            store.keep(replace(call, values=own))
    assert len(list(tmp_path.glob("*/*"))) == 2  # the lock, and what was kept before
    assert_equal(before.fetched(), own)
    assert store.used["disk"] == call.nbytes


STORES = """
import os, sys, time
from sparsify import BaselineStore, sparsify
from tests.small import small_inputs, small_unet
store = BaselineStore(disk=None, folder=sys.argv[1])
kept = store.keep(sparsify(small_unet(), backend="eager").record(*small_inputs())[1])
if os.fork() == 0:
    del kept, store
    sys.exit()
os.wait()
print(flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """And what lives is left alone, also by a copy of its process that ends."""
    command = [sys.executable, "-c", STORES, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with BaselineStore(disk=None, folder=tmp_path):
            assert len(files(tmp_path)) == 1 and len(list(tmp_path.iterdir())) == 2
        os.kill(process.pid, signal.SIGKILL)
    assert len(files(tmp_path)) == 1
    with BaselineStore(disk=None, folder=tmp_path):
        assert not files(tmp_path) and len(list(tmp_path.iterdir())) == 1
    assert not list(tmp_path.iterdir())


# -- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["calls", "schedule", "neither"])
def test_a_session_over_its_budget_is_refused_before_it_starts(
    how: str, sparse: SparseModule, session: Session, tmp_path: Path
) -> None:
    """With the budget that would do."""
    room = session.nbytes - 1
    options = {"calls": {"calls": STEPS}, "schedule": {"schedule": Schedule.every(1, STEPS)}}
    with BaselineStore(host=room // 2, disk=room // 2, folder=tmp_path) as store:
        with pytest.raises(StoreError, match=r"no room: disk='(.*)' would do; or") as error:
            recorded(sparse, store, **options.get(how, {}))
        made = sum(store.used.values())
        assert made < session.nbytes if how == "neither" else not made
        assert ("8 calls" in str(error.value)) == (how != "neither")
    if how != "neither":
        enough = str(error.value).split("disk='")[1].split("'")[0]
        with BaselineStore(host=room // 2, disk=enough, folder=tmp_path) as store:
            assert recorded(sparse, store, calls=STEPS).nbytes == session.nbytes


def test_an_edited_run_over_the_budget_is_refused_before_it_starts(
    sparse: SparseModule, session: Session
) -> None:
    with BaselineStore(host=2 * session.nbytes - 1) as store:
        own = recorded(sparse, store)
        with (
            pytest.raises(StoreError, match=r"8 calls of .*host="),
            own.editing(corner(), keep=True) as editing,
        ):
            sample(sparse, EDITED)
        assert editing.position == 0 and store.used["host"] == session.nbytes
        assert torch.equal(edited(sparse, own), edited(sparse, session))


def test_a_late_edit_takes_what_is_new(sparse: SparseModule, store: BaselineStore) -> None:
    """What comes before is shared."""
    own = recorded(sparse, store)
    with own.editing(corner(), keep=True) as editing:
        sample(sparse, EDITED, skip=5)
    kept = editing.session
    assert len(kept.calls) == STEPS and all(
        a is b for a, b in zip(kept.calls[:5], own.calls[:5], strict=True)
    )
    assert store.used["disk"] == own.nbytes + kept[5:].nbytes


def test_only_the_first_call_tells(call: Baseline) -> None:
    """Later ones may be larger, or smaller."""
    sizes = [10, 70, 10, 10]
    with BaselineStore(host=400) as store:
        calls = Calls(store, expected=len(sizes))
        for size in sizes:
            calls.append(replace(call, values={"a": torch.randn(size)}))
        with pytest.raises(StoreError, match="one more call takes 40 B"):
            calls.append(replace(call, values={"a": torch.randn(10)}))
        assert len(calls) == len(sizes) and store.used["host"] == 400


@pytest.mark.parametrize("budget", ["much", "-4 GiB", -1, True, 1.5j])
def test_what_is_no_budget_is_refused(budget: Any) -> None:
    with pytest.raises(ConfigError, match=r"host=.*: bytes, text such as '4 GiB'"):
        BaselineStore(host=budget)


def test_a_store_needs_a_budget_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no budget"):
        BaselineStore()
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"folder=.*cannot be written"):
        BaselineStore(disk=None, folder=tmp_path / "file")


def test_a_store_that_was_closed_says_so(sparse: SparseModule, tmp_path: Path) -> None:
    with BaselineStore(disk=None, folder=tmp_path) as store:
        own = recorded(sparse, store)
    assert not list(tmp_path.iterdir())
    with pytest.raises(StoreError, match="was closed"):
        edited(sparse, own)
    with pytest.raises(StoreError, match="was closed"):
        recorded(sparse, store)
    store.close()


def test_one_line_says_what_it_holds(sparse: SparseModule, call: Baseline) -> None:
    with BaselineStore(host="1 MiB", disk=None) as store:
        kept = store.keep(call)
        assert repr(store) == "<BaselineStore: host 351.4 KiB of 1.0 MiB, disk 0 B>"
        assert repr(kept) == repr(call) and store.keep(kept) is kept
