"""Callbacks that only watch a training: the used learning rates, the curves, the terminal."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
