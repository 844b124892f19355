"""The daemon: it moves bytes, and knows nothing of tensors."""

from importlib.metadata import version

__version__ = version("ckptd")
