"""Tiny students."""

from support.students import *  # noqa: F403
from support.students import _quick_compilation  # noqa: F401
