"""Model directories without training, stores, experiments to plan."""

from support.data import *  # noqa: F403
from support.planning import *  # noqa: F403
from support.reports import *  # noqa: F403
