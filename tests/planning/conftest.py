"""An experiment to plan."""

from support.planning import *  # noqa: F403
