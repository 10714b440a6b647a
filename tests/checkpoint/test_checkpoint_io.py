import functools
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from lit_cosine.checkpoint import CheckpointError, SafeCheckpointIO, read_checkpoint, read_newest, write_checkpoint
from lit_cosine.checkpoint._checkpoint_file import DamagedCheckpointError, check_plain, link_checkpoint
from lit_cosine.checkpoint._checkpoint_io import LAST

CONTENTS = {"state_dict": {"weight": torch.arange(1000.0)}, "epoch": 3}


def same(checkpoint, contents=CONTENTS):
    return (
        checkpoint.keys() == contents.keys()
        and torch.equal(checkpoint["state_dict"]["weight"], contents["state_dict"]["weight"])
        and checkpoint["epoch"] == contents["epoch"]
    )


def test_written_files_are_read_by_us_by_torch_and_by_zip(tmp_path):
    path = tmp_path / "new" / "folder" / "a.ckpt"
    SafeCheckpointIO().save_checkpoint(CONTENTS, path)
    assert same(SafeCheckpointIO().load_checkpoint(path))
    assert same(SafeCheckpointIO().load_checkpoint(f"file://{path}"))
    assert same(torch.load(path, weights_only=True))
    assert zipfile.ZipFile(path).testzip() is None
    assert os.listdir(path.parent) == ["a.ckpt"]
    SafeCheckpointIO().remove_checkpoint(path)
    assert os.listdir(path.parent) == []


def test_bare_weights_come_back_from_a_worker(tmp_path):
    launched_by_fork = tmp_path / ".temp.ckpt"  # lightning 2.6.6, _MultiProcessingLauncher
    SafeCheckpointIO().save_checkpoint({"weight": torch.ones(1)}, launched_by_fork)
    assert SafeCheckpointIO().load_checkpoint(launched_by_fork) == {"weight": torch.ones(1)}
    torch.save({"weight": Path("x")}, launched_by_fork)
    with pytest.raises(CheckpointError, match=r"temp.ckpt is refused: it holds more than tensors"):
        SafeCheckpointIO().load_checkpoint(launched_by_fork)


def test_stock_checkpoints_are_read_too(tmp_path):
    torch.save(CONTENTS, tmp_path / "zip.ckpt")
    torch.save(CONTENTS, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "zip.ckpt"))
    assert same(read_checkpoint(tmp_path / "old.ckpt"))
    assert same(read_checkpoint(io.BytesIO((tmp_path / "zip.ckpt").read_bytes())))


def test_every_truncation_and_flipped_bit_is_detected(tmp_path):
    path = tmp_path / "a.ckpt"
    write_checkpoint(CONTENTS, path)
    whole = path.read_bytes()
    for cut in [*range(0, len(whole), 97), *range(len(whole) - 110, len(whole))]:
        path.write_bytes(whole[:cut])
        with pytest.raises(DamagedCheckpointError, match=r"checkpoint .*a.ckpt (is damaged|could not be read)"):
            read_checkpoint(path)
    for place in [*range(0, len(whole), 97), *range(len(whole) - 110, len(whole))]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(CheckpointError, match=r"checkpoint .*a.ckpt "):
            read_checkpoint(path)


def test_files_that_are_no_checkpoints_are_refused_in_one_sentence(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.ckpt")
    for name in ("tensor.ckpt", "weights.ckpt"):
        with pytest.raises(
            CheckpointError, match=f"checkpoint .*{name} is not a Lightning checkpoint: it has no state"
        ):
            read_checkpoint(tmp_path / name)
    (tmp_path / "text.ckpt").write_text("learning rate: 0.1\n" * 20)
    with pytest.raises(DamagedCheckpointError, match=r"text.ckpt is damaged or not a checkpoint"):
        read_checkpoint(tmp_path / "text.ckpt")
    for missing in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"checkpoint {missing} was not found"):
            read_checkpoint(missing)


def test_damaged_last_falls_back_to_the_most_progress_with_a_warning(tmp_path):
    names = ["epoch=0-step=6.ckpt", "of-another-callback.ckpt", "epoch=1-step=12.ckpt", LAST]
    for number, name in enumerate(names):
        write_checkpoint({**CONTENTS, "epoch": number // 2, "global_step": number}, tmp_path / name)
        os.utime(tmp_path / name, ns=(9 - number, 9 - number))  # the clock was set back between them
    reader = SafeCheckpointIO()
    assert reader.load_checkpoint(tmp_path / LAST)["global_step"] == 3
    assert read_newest(tmp_path)[0] == tmp_path / LAST
    for name in (LAST, "epoch=1-step=12.ckpt"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    warning = r"last.ckpt is damaged.*step=12.ckpt is damaged.* checkpoint instead: .*of-another-callback.ckpt"
    with pytest.warns(UserWarning, match=warning):
        assert reader.load_checkpoint(tmp_path / LAST)["global_step"] == 1
    with pytest.warns(UserWarning, match=warning):
        assert read_newest(tmp_path)[0] == tmp_path / "of-another-callback.ckpt"
    # only last.ckpt falls back; any other name is a request for that file
    with pytest.raises(DamagedCheckpointError, match=r"step=12.ckpt is damaged"):
        reader.load_checkpoint(tmp_path / "epoch=1-step=12.ckpt")
    for name in names[:2]:
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"last.ckpt is damaged.*step=6.ckpt is damaged: it is empty"):
        reader.load_checkpoint(tmp_path / LAST)
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .*/empty"):
        read_newest(tmp_path / "empty")


def test_refused_last_does_not_fall_back(tmp_path):
    write_checkpoint(CONTENTS, tmp_path / "a.ckpt")
    torch.save({"state_dict": {}, "x": Path("x")}, tmp_path / LAST)
    with pytest.raises(CheckpointError, match=r"last.ckpt is refused: it holds more than tensors and plain data"):
        SafeCheckpointIO().load_checkpoint(tmp_path / LAST)


@pytest.mark.parametrize("value", [Path("x"), {1: [object()]}, torch.nn.Linear(1, 1), functools.partial(int)])
def test_values_that_could_never_be_loaded_are_not_saved(tmp_path, value):
    write_checkpoint(CONTENTS, tmp_path / "a.ckpt")
    for refuse in (
        lambda: check_plain({"x": value}, "hyperparameters"),
        lambda: write_checkpoint({"state_dict": {}, "x": value}, tmp_path / "a.ckpt"),
    ):
        with pytest.raises(CheckpointError, match=r"(hyperparameters|checkpoint .*a.ckpt) must hold only tensors and"):
            refuse()
    assert same(read_checkpoint(tmp_path / "a.ckpt"))


def test_links_are_replaced_in_one_rename(tmp_path):
    write_checkpoint(CONTENTS, tmp_path / "a.ckpt")
    write_checkpoint({**CONTENTS, "epoch": 4}, tmp_path / "b.ckpt")
    for source in ("a.ckpt", "b.ckpt", "b.ckpt"):
        link_checkpoint(tmp_path / source, tmp_path / LAST)
        assert (tmp_path / LAST).samefile(tmp_path / source)
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "b.ckpt", LAST]


def test_only_local_folders_and_no_options(tmp_path):
    with pytest.raises(ValueError, match=r"SafeCheckpointIO writes to local folders only, got 'memory://a.ckpt'"):
        SafeCheckpointIO().save_checkpoint(CONTENTS, "memory://a.ckpt")
    with pytest.raises(TypeError, match="SafeCheckpointIO takes no storage_options, got 'fast'"):
        SafeCheckpointIO().save_checkpoint(CONTENTS, tmp_path / "a.ckpt", "fast")


FULL_DISK = """
import os, subprocess, sys, torch
from lit_cosine.checkpoint import write_checkpoint, read_checkpoint
folder = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], check=True)
path = folder + "/last.ckpt"
write_checkpoint({"state_dict": {"weight": torch.ones(30_000)}}, path)
try:
    write_checkpoint({"state_dict": {"weight": torch.zeros(80_000)}}, path)
except OSError as error:
    print(error)
print(read_checkpoint(path)["state_dict"]["weight"].mean().item(), os.listdir(folder))
try:
    write_checkpoint({"state_dict": {"weight": torch.zeros(120_000)}}, folder + "/other.ckpt")
except OSError as error:
    print(error)
print(os.listdir(folder))
"""


def needs_mounts():
    own = ["unshare", "--user", "--map-root-user", "--mount"]
    may = (
        shutil.which("unshare")
        and subprocess.run([*own, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], timeout=60).returncode == 0
    )
    if not may:
        pytest.skip("this system does not let a test mount a small disk of its own (unshare --user --mount)")
    return own


@pytest.mark.slow
def test_full_disk_leaves_the_previous_checkpoint(tmp_path):
    command = [*needs_mounts(), sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=250)
    first, kept, second, left = done.stdout.splitlines()
    assert first == (
        f"checkpoint {tmp_path}/last.ckpt could not be written: No space left on device; the previous file is unchanged"
    )
    assert kept == "1.0 ['last.ckpt']"
    assert second == (
        f"checkpoint {tmp_path}/other.ckpt could not be written: No space left on device; no file was left there"
    )
    assert left == "['last.ckpt']"


FULL_RUN = """
import subprocess, sys, warnings
from pathlib import Path
from tests.helpers.resumable import build, weights
warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
whole, model, data = build(folder / "whole")
whole.fit(model, data)
small = folder / "small"
small.mkdir()
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", small], check=True)
run, other, data = build(small)
try:
    run.fit(other, data)
except OSError as error:
    print(error)
print(run.global_step < whole.global_step)
subprocess.run(["mount", "-o", "remount,size=9m", small], check=True)
run, other, data = build(small)
run.fit(other, data, ckpt_path="last")
print(run.global_step == whole.global_step, weights(other) == weights(model))
"""


@pytest.mark.slow
def test_run_stopped_by_a_full_disk_resumes_exactly_once_there_is_room(tmp_path):
    command = [*needs_mounts(), sys.executable, "-c", FULL_RUN, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=250)
    sentence, *rest = done.stdout.splitlines()
    assert re.fullmatch(r"checkpoint .*last.ckpt could not be written: No space left on device; the prev.*", sentence)
    assert rest == ["True", "True True"]
