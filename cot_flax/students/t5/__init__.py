"""T5 1.0 and 1.1 (Flan-T5)."""

from cot_flax.students.t5.config import T5Config
from cot_flax.students.t5.student import T5Student

__all__ = ["T5Config", "T5Student"]
