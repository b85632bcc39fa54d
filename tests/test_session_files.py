"""Sessions as folders."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsify import BaselineError, FolderError, Session, SparseModule, sparsify
from tests.small import corner, small_inputs, small_unet
from tests.test_session import STEPS, module, sample

START = small_inputs()[0]
EDITED = torch.where(corner(), START + 1, START)


def recorded() -> tuple[SparseModule, Session]:
    sparse = module()
    with sparse.recording() as session:
        sample(sparse, START)
    return sparse, session


def edited(sparse: SparseModule, session: Session) -> torch.Tensor:
    with session.editing(corner()):
        return sample(sparse, EDITED)


def test_a_loaded_session_edits_alike(tmp_path: Path) -> None:
    """In another module, bit for bit; once more from what replaced it."""
    sparse, session = recorded()
    want, (other, _) = edited(sparse, session), recorded()
    for _ in range(2):
        session.save(tmp_path / "session")
        loaded = other.load_session(tmp_path / "session")
        assert (len(loaded.calls), loaded.nbytes) == (STEPS, session.nbytes)
        assert torch.equal(edited(other, loaded), want)
    assert len(list((tmp_path / "session").iterdir())) == 1 + STEPS


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    sparse, session = recorded()
    session.save(path := tmp_path / "session")
    (victim,) = path.glob("0003-*.safetensors")
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(FolderError, match=rf"{victim.name} was changed after it was written"):
        sparse.load_session(path)
    victim.unlink()
    with pytest.raises(FolderError, match=rf"lacks {victim.name}"):
        sparse.load_session(path)
    with pytest.raises(FolderError, match="holds no session"):
        sparse.load_session(tmp_path / "nothing")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "diary.txt").touch()
    with pytest.raises(FolderError, match="exists and is no session"):
        session.save(tmp_path / "own")


def test_another_models_session_is_refused(tmp_path: Path) -> None:
    _, session = recorded()
    session.save(tmp_path / "session")
    other = sparsify(small_unet(), backend="eager", dilate=2)
    loaded = other.load_session(tmp_path / "session")
    with pytest.raises(BaselineError, match="another model"), loaded.editing(corner()):
        sample(other, EDITED)


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    sparse, session = recorded()
    session.save(path := tmp_path / "session")
    odd = replace(session.calls[-1], inputs=(object(), *session.calls[-1].inputs[1:]))
    with pytest.raises(BaselineError, match="which no file can hold"):
        Session(session.module, [*session.calls, odd]).save(path)
    assert torch.equal(edited(sparse, sparse.load_session(path)), edited(sparse, session))
    assert len(list(path.iterdir())) == 1 + STEPS


SAVES = """
import sys
from pathlib import Path
from tests.test_session_files import recorded
_, session = recorded()
while True:
    session.save(Path(sys.argv[1]))
    print(flush=True)
"""


def test_a_killed_process_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    """Whatever it was doing. The next one that saves takes away what it left."""
    sparse, session = recorded()
    path = tmp_path / "session"
    command = [sys.executable, "-c", SAVES, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    assert len(sparse.load_session(path).calls) == STEPS
    session.save(path)
    assert len(list(path.iterdir())) == 1 + STEPS
