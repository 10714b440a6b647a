"""Malicious checkpoints of several kinds, loaded in every way, and proof that an unsafe reader would run them."""

import functools
import hashlib
import http.server
import io
import os
import pickle
import subprocess
import threading

import pytest
import torch

from lit_cosine import ExactResume, LitClassifier, TabularDataModule
from lit_cosine.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from tests.helpers.resumable import build


class Runs:
    """Calls ``function(*arguments)`` when an unsafe reader unpickles it."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class HyperParameter:
    """A user's class as a hyperparameter, which runs its command when an unsafe reader unpickles it."""

    def __init__(self, command):
        self.command = command

    def __getstate__(self):
        return {"command": self.command}

    def __setstate__(self, state):
        os.system(state["command"])


KINDS = {
    "os_system": lambda command: Runs(os.system, command),
    "eval": lambda command: Runs(eval, f"__import__('os').system({command!r})"),
    "exec": lambda command: Runs(exec, f"__import__('os').system({command!r})"),
    "popen": lambda command: Runs(subprocess.call, command.split()),
    "hidden_in_a_call": lambda command: Runs(max, Runs(os.system, command), 1),
    "map": lambda command: Runs(list, Runs(map, os.system, [command])),
    "hyperparameter_class": HyperParameter,
}
FORMATS = ("old_format", "bare_pickle", "with_a_checksum")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A valid checkpoint of LitClassifier, to put malicious values into."""
    folder = tmp_path_factory.mktemp("good")
    run, model, data = build(folder, "module", max_epochs=1)
    run.fit(model, data)
    contents = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    # SimpleNN's: load_from_checkpoint would rebuild it from what the file says
    small = LitClassifier()
    return {**contents, "state_dict": small.state_dict(), "hyper_parameters": dict(small.hparams)}


def malicious(kind, path, command, good):
    """Write a checkpoint of ``kind`` to ``path``."""
    value = KINDS.get(kind, KINDS["os_system"])(command)
    contents = {**good, "hyper_parameters": {**good["hyper_parameters"], "lr": value}}
    if kind == "bare_pickle":
        path.write_bytes(pickle.dumps(value, protocol=2))
    elif kind == "with_a_checksum":
        # a valid checksum proves that a file is complete, not that it is harmless
        buffer = io.BytesIO()
        torch.save(contents, buffer)
        sealed = buffer.getvalue()[:-2] + (82).to_bytes(2, "little")
        path.write_bytes(sealed + b"lit_cosine sha256=" + hashlib.sha256(sealed).hexdigest().encode())
    else:
        torch.save(contents, path, _use_new_zipfile_serialization=kind != "old_format")


def on_the_trainer(method):
    def call(path, folder):
        checkpoints = ExactResume(folder / "checkpoints")
        run, model, data = build(folder, "module", checkpoints=checkpoints, max_epochs=1)
        getattr(run, method)(model, data, ckpt_path=path)

    return call


WAYS = {
    "fit": on_the_trainer("fit"),
    "test": on_the_trainer("test"),
    "predict": on_the_trainer("predict"),
    "model": lambda path, folder: LitClassifier.load_from_checkpoint(path),
    "data": lambda path, folder: TabularDataModule.load_from_checkpoint(path),
}


@pytest.fixture
def proof(tmp_path):
    path = tmp_path / "pwned"
    yield path
    assert not path.exists()


@pytest.mark.parametrize("kind", [*KINDS, *FORMATS])
@pytest.mark.parametrize("unsafe", [False, True], ids=["", "environment"])
def test_no_way_of_loading_runs_anything(kind, unsafe, good, proof, tmp_path, monkeypatch):
    if unsafe:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "malicious.ckpt"
    malicious(kind, path, f"touch {proof}", good)
    for load in WAYS.values() if kind == "os_system" or not unsafe else [WAYS["model"]]:
        with pytest.raises(CheckpointError, match=r"malicious.ckpt is (refused|damaged)") as error:
            load(path, tmp_path)
        assert kind != "with_a_checksum" or "is refused: it holds more than tensors" in str(error.value)
        assert not proof.exists()


@pytest.mark.parametrize("kind", [*KINDS, "old_format", "bare_pickle"])
def test_unsafe_reader_runs_each_kind(kind, good, tmp_path):
    path = tmp_path / "malicious.ckpt"
    malicious(kind, path, f"touch {tmp_path}/pwned", good)
    if kind == "bare_pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "pwned").exists()


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_run_from_the_network(way, good, proof, tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    malicious("os_system", tmp_path / "served" / "malicious.ckpt", f"touch {proof}", good)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    handler = functools.partial(Quiet, directory=tmp_path / "served")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        address = f"http://127.0.0.1:{server.server_port}/malicious.ckpt"
        try:
            with pytest.raises(
                CheckpointError, match=r"http://.*malicious.ckpt is refused: .* \(posix.system\); nothing"
            ):
                WAYS[way](address, tmp_path)
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    "wanted",
    [
        {"_instantiator": "os.system"},
        {"_instantiator": "lightning.pytorch.cli.instantiate_module", "_class_path": "antigravity.Model"},
        {"_class_path": "lit_cosine.LitClassifier"},
    ],
)
def test_checkpoint_cannot_name_what_a_model_is_built_with(wanted, good, tmp_path):
    path = tmp_path / "built.ckpt"
    write_checkpoint({**good, "hyper_parameters": {**good["hyper_parameters"], **wanted}}, path)
    with pytest.raises(CheckpointError, match=r"built.ckpt is refused: it names what to build it with \(_"):
        LitClassifier.load_from_checkpoint(path)


def test_schedule_is_built_from_known_classes_only(good, proof, tmp_path):
    path = tmp_path / "schedule.ckpt"
    wanted = {"class_path": "os.system", "init_args": {"command": f"touch {proof}"}}
    write_checkpoint({**good, "hyper_parameters": {**good["hyper_parameters"], "schedule": wanted}}, path)
    with pytest.raises(ValueError, match=r"unknown schedule 'os\.system'"):
        LitClassifier.load_from_checkpoint(path)


def test_unsafe_loading_is_refused(good, tmp_path):
    path = tmp_path / "good.ckpt"
    write_checkpoint(good, path)
    assert LitClassifier.load_from_checkpoint(path, weights_only=True).lr == 0.01
    sentence = "weights_only must be True, got False: other loading is not supported"
    with pytest.raises(CheckpointError, match=sentence):
        LitClassifier.load_from_checkpoint(path, weights_only=False)
    run, model, data = build(tmp_path)
    with pytest.raises(CheckpointError, match=sentence):
        run.fit(model, data, ckpt_path=path, weights_only=False)
