"""lit_cosine: the learning-rate curve you plan is the curve you get.

The public names are listed in ``__init__.pyi`` and load on first use: ``import lit_cosine`` loads neither torch
nor numpy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
