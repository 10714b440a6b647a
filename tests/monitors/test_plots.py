import numpy as np

from lit_cosine.monitors._figures import pixels, training_curves


def test_axes_say_step_and_epoch_and_every_curve_is_named():
    lrs = {"lr-Adam/pg1": ([0, 1, 2], [0.1, 0.05, 0.0]), "lr-Adam/pg2": ([0, 1, 2], [0.2, 0.1, 0.0])}
    figure = training_curves(lrs, {"training": ([0, 1], [2.0, 1.0])}, {3: 1, 4: 2})
    for axes, names in zip(figure.axes, (list(lrs), ["training"]), strict=True):
        assert axes.get_xlabel() == "optimizer step"
        assert [text.get_text() for text in axes.get_legend().get_texts()] == names
        (top,) = axes.child_axes
        assert top.get_xlabel() == "epoch"
        assert [
            (tick, label.get_text()) for tick, label in zip(top.get_xticks(), top.get_xticklabels(), strict=True)
        ] == [
            (1, "3"),
            (2, "4"),
        ]
    assert [line.get_drawstyle() for line in figure.axes[0].get_lines()] == ["steps-post"] * 2


def test_many_epochs_get_at_most_ten_ticks():
    figure = training_curves({}, {}, {epoch: 13 * epoch for epoch in range(1, 201)})
    (top,) = figure.axes[0].child_axes
    assert [label.get_text() for label in top.get_xticklabels()] == [str(epoch) for epoch in range(20, 201, 20)]


def test_pixels_are_the_image():
    image = pixels(training_curves({}, {}, {}))
    assert image.dtype == np.uint8
    assert image.shape == (450, 1200, 4)
    assert (image[0, 0] == 255).all()
    assert (image != 255).any()
