import pytest
from resumable import BATCHES, EPOCHS, Trace, build, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec")


def finish(folder, path=None, **arguments):
    trace = Trace()
    run, model, data = build(folder, trace=trace, **arguments)
    run.fit(model, data, ckpt_path=path)
    return trace.rows, weights(model), run.global_step


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("road", ["module", "callback"])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_every_checkpoint_resumes_exactly(tmp_path, road, accumulate, workers):
    arguments = {"road": road, "accumulate": accumulate, "workers": workers}
    rows, digest, steps = finish(tmp_path, **arguments)
    paths = sorted((tmp_path / "checkpoints").glob("epoch=*.ckpt"))
    windows = -(-BATCHES // accumulate)
    assert len(paths) == EPOCHS * windows
    for path in paths:
        epoch, step = (int(part.split("=")[1]) for part in path.stem.split("-"))
        within = step - epoch * windows
        done = epoch * BATCHES + min(within * accumulate, BATCHES)
        resumed, resumed_digest, resumed_steps = finish(tmp_path, path, **arguments)
        assert resumed == rows[done:], path.name
        assert resumed_digest == digest, path.name
        assert resumed_steps == steps
