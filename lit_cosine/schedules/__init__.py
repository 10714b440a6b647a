"""Learning-rate curves as values, durations and the clock: the standard library alone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
