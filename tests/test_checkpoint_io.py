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

from lit_cosine.checkpoint_io import (
    LAST,
    CheckpointError,
    DamagedCheckpointError,
    SafeCheckpointIO,
    check_plain,
    link_in_place,
    newest_intact,
    read_checkpoint,
    write_checkpoint,
)

CONTENTS = {"state_dict": {"weight": torch.arange(1000.0)}, "epoch": 3}


def same(checkpoint, contents=CONTENTS):
    return (
        checkpoint.keys() == contents.keys()
        and torch.equal(checkpoint["state_dict"]["weight"], contents["state_dict"]["weight"])
        and checkpoint["epoch"] == contents["epoch"]
    )


def test_what_is_written_is_read_by_us_by_torch_and_by_zip(tmp_path):
    path = tmp_path / "new" / "folder" / "a.ckpt"
    SafeCheckpointIO().save_checkpoint(CONTENTS, path)
    assert same(SafeCheckpointIO().load_checkpoint(path))
    assert same(SafeCheckpointIO().load_checkpoint(f"file://{path}"))
    assert same(torch.load(path, weights_only=True))
    assert zipfile.ZipFile(path).testzip() is None
    assert os.listdir(path.parent) == ["a.ckpt"]
    SafeCheckpointIO().remove_checkpoint(path)
    assert os.listdir(path.parent) == []


def test_stock_checkpoints_are_read_too(tmp_path):
    torch.save(CONTENTS, tmp_path / "zip.ckpt")
    torch.save(CONTENTS, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(tmp_path / "zip.ckpt"))
    assert same(read_checkpoint(tmp_path / "old.ckpt"))
    assert same(read_checkpoint(io.BytesIO((tmp_path / "zip.ckpt").read_bytes())))


def test_any_cut_and_any_flipped_bit_is_found(tmp_path):
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


def test_what_is_no_checkpoint_gets_one_sentence(tmp_path):
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.ckpt")
    for name in ("tensor.ckpt", "weights.ckpt"):
        with pytest.raises(CheckpointError, match=f"checkpoint .*{name} is not one of Lightning's: it has no state"):
            read_checkpoint(tmp_path / name)
    (tmp_path / "text.ckpt").write_text("learning rate: 0.1\n" * 20)
    with pytest.raises(DamagedCheckpointError, match=r"text.ckpt is damaged, or no checkpoint at all"):
        read_checkpoint(tmp_path / "text.ckpt")
    for missing in (tmp_path / "none.ckpt", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"checkpoint {missing} was not found"):
            read_checkpoint(missing)


def test_last_falls_back_to_the_newest_intact_and_says_so(tmp_path):
    for number, name in enumerate(["c.ckpt", "b.ckpt", "a.ckpt", LAST]):
        write_checkpoint({**CONTENTS, "epoch": number}, tmp_path / name)
        os.utime(tmp_path / name, ns=(number, number))
    reader = SafeCheckpointIO()
    assert reader.load_checkpoint(tmp_path / LAST)["epoch"] == 3
    assert newest_intact(tmp_path) == tmp_path / LAST
    for name in (LAST, "a.ckpt"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-9])
    os.utime(tmp_path / "a.ckpt", ns=(2, 2))
    with pytest.warns(UserWarning, match=r"last.ckpt is damaged.*a.ckpt is damaged.*is taken instead: .*b.ckpt"):
        assert reader.load_checkpoint(tmp_path / LAST)["epoch"] == 1
    with pytest.warns(UserWarning, match=r"is taken instead: .*b.ckpt"):
        assert newest_intact(tmp_path) == tmp_path / "b.ckpt"
    # a name that stands for nothing but its file is not replaced by another
    with pytest.raises(DamagedCheckpointError, match=r"a.ckpt is damaged"):
        reader.load_checkpoint(tmp_path / "a.ckpt")
    for name in ("b.ckpt", "c.ckpt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"last.ckpt is damaged.*b.ckpt is damaged: it is empty"):
        reader.load_checkpoint(tmp_path / LAST)
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint in .*/empty"):
        newest_intact(tmp_path / "empty")


def test_a_refused_last_is_not_damage(tmp_path):
    write_checkpoint(CONTENTS, tmp_path / "a.ckpt")
    torch.save({"state_dict": {}, "x": Path("x")}, tmp_path / LAST)
    with pytest.raises(CheckpointError, match=r"last.ckpt is refused: it holds more than tensors and plain data"):
        SafeCheckpointIO().load_checkpoint(tmp_path / LAST)


@pytest.mark.parametrize("value", [Path("x"), {1: [object()]}, torch.nn.Linear(1, 1), functools.partial(int)])
def test_what_could_never_be_loaded_is_not_saved(tmp_path, value):
    write_checkpoint(CONTENTS, tmp_path / "a.ckpt")
    for refuse in (
        lambda: check_plain({"x": value}, "hyperparameters"),
        lambda: write_checkpoint({"state_dict": {}, "x": value}, tmp_path / "a.ckpt"),
    ):
        with pytest.raises(CheckpointError, match=r"(hyperparameters|checkpoint .*a.ckpt) must hold only tensors and"):
            refuse()
    assert same(read_checkpoint(tmp_path / "a.ckpt"))


def test_links_are_replaced_in_place(tmp_path):
    write_checkpoint(CONTENTS, tmp_path / "a.ckpt")
    write_checkpoint({**CONTENTS, "epoch": 4}, tmp_path / "b.ckpt")
    for source in ("a.ckpt", "b.ckpt", "b.ckpt"):
        link_in_place(tmp_path / source, tmp_path / LAST)
        assert (tmp_path / LAST).samefile(tmp_path / source)
    assert sorted(os.listdir(tmp_path)) == ["a.ckpt", "b.ckpt", LAST]


def test_only_local_folders_and_no_options(tmp_path):
    with pytest.raises(ValueError, match=r"SafeCheckpointIO writes to local folders only, got 'memory://a.ckpt'"):
        SafeCheckpointIO().save_checkpoint(CONTENTS, "memory://a.ckpt")
    with pytest.raises(TypeError, match="SafeCheckpointIO takes no storage_options, got 'fast'"):
        SafeCheckpointIO().save_checkpoint(CONTENTS, tmp_path / "a.ckpt", "fast")


FULL_DISK = """
import os, subprocess, sys, torch
from lit_cosine.checkpoint_io import write_checkpoint, read_checkpoint
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
    may = shutil.which("unshare") and subprocess.run([*own, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode == 0
    if not may:
        pytest.skip("this system does not let a test mount a small disk of its own (unshare --user --mount)")
    return own


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    command = [*needs_mounts(), sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, kept, second, left = done.stdout.splitlines()
    assert first == (
        f"checkpoint {tmp_path}/last.ckpt could not be written: No space left on device; the one before it is untouched"
    )
    assert kept == "1.0 ['last.ckpt']"
    assert second == (
        f"checkpoint {tmp_path}/other.ckpt could not be written: No space left on device; no file was left there"
    )
    assert left == "['last.ckpt']"


FULL_RUN = """
import subprocess, sys, warnings
from pathlib import Path
from resumable import build, weights
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


def test_a_run_on_a_full_disk_stops_and_goes_on_exactly_when_there_is_room(tmp_path):
    command = [*needs_mounts(), sys.executable, "-c", FULL_RUN, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[1]}"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    sentence, *rest = done.stdout.splitlines()
    assert re.fullmatch(r"checkpoint .*last.ckpt could not be written: No space left on device; the one .*", sentence)
    assert rest == ["True", "True True"]
