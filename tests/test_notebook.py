"""What Jupyter shows of an object that ends a cell: pictures and tables, in a notebook that is executed."""

import io
import resource
from pathlib import Path

import matplotlib.image
import pytest

nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
nbclient = pytest.importorskip("nbclient", reason="needs the extra docs")
pytest.importorskip("ipykernel", reason="needs the extra docs")

TRAINING = """
import warnings
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lit_cosine import Cosine, Duration, LearningRateScheduler, ScheduleAudit, TrainingCurves
warnings.simplefilter("ignore")
audit, curves = ScheduleAudit(), TrainingCurves()
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
callbacks = [LearningRateScheduler(Cosine(end=0.1), replace=True), audit, curves]
Trainer(max_epochs=1, limit_train_batches=8, limit_val_batches=0, accelerator="cpu", callbacks=callbacks, **quiet).fit(
    BoringModel()
)
"""


DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = [*sorted(DOCS.glob("tutorials/[!i]*.md")), DOCS / "schedules.md"]

SHOWN = {"curves": "image/png", "found.plot()": "image/png", "found": "text/html", "audit": "text/html"}
"""What ends a cell, and the kind of its output."""


def processor_time():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_in_thirty_seconds_and_has_pictures(page, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    monkeypatch.delenv("MPLBACKEND", raising=False)
    read = pytest.importorskip("myst_nb.core.read", reason="needs the extra docs").read_myst_markdown_notebook
    config = pytest.importorskip("myst_parser.config.main").MdParserConfig()
    notebook = read(page.read_text(encoding="utf-8"), config=config, add_source_map=False)
    before = processor_time()
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert processor_time() - before < 30
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [(cell.source.split("\n")[-1], [{*out.data} for out in cell.outputs if "data" in out]) for cell in cells]
    assert any(kinds & {"image/png", "image/svg+xml"} for _, outputs in shown for kinds in outputs)
    assert "\\u001b" not in nbformat.writes(notebook)  # of a terminal
    for end, outputs in shown:  # once, as a picture or a table
        wanted = SHOWN.get(end)
        assert wanted is None or [wanted in kinds for kinds in outputs] == [True]


@pytest.mark.slow
def test_a_notebook_shows_pictures_and_tables(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # the package under test, also in the kernel
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses its own
    cells = [TRAINING, "Cosine(end=0.1)", "Cosine().plot(lr=0.1, steps=100)", "audit", "curves", 'Duration.parse("5%")']
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [{kind for out in cell.outputs for kind in out.get("data", ())} for cell in notebook.cells[1:]]
    assert "image/svg+xml" in shown[0]
    assert "image/png" in shown[1]
    assert "text/html" in shown[2]
    assert "image/png" in shown[3]
    (table,) = [out.data["text/html"] for out in notebook.cells[3].outputs]
    assert "<th>first LR</th>" in table
    assert "<td>lr-SGD</td><td>0.1</td>" in table
    (duration,) = notebook.cells[5].outputs
    assert duration.data["text/plain"] == "Duration.parse('5%')"


def test_the_picture_of_curves_is_their_figure(tmp_path):
    from lightning.pytorch import Trainer

    from lit_cosine import ScheduleAudit, TrainingCurves
    from tests.helpers.nets import Net

    curves, audit = TrainingCurves(), ScheduleAudit("print")
    assert curves._repr_png_() is None
    assert repr(audit) == "ScheduleAudit('print')"
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, callbacks=[curves, audit], default_root_dir=tmp_path, accelerator="cpu", **quiet)
    trainer.fit(Net())
    assert matplotlib.image.imread(io.BytesIO(curves._repr_png_())).shape == (450, 1200, 4)
    assert repr(curves) == f"TrainingCurves(None, 'training_curves.png', path={str(curves.path)!r})"
    assert repr(audit) == "ScheduleAudit('print', findings=0, lr-SGD 0.1 -> 0.1)"
