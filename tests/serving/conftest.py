"""A run that can be asked."""

from support.serving import *  # noqa: F403
from support.serving import _quick_compilation  # noqa: F401
