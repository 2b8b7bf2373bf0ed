"""cot-flax: teach small models to reason step by step.

`load(path).answer("question")` asks a student.

Shape letters, used as suffixes of array names all over the package:
  B batch    S encoder length    T decoder length    V vocabulary
  K top-k    D model width       H heads             F mlp width
  N samples a prompt             C head width
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cot_flax.serving.asking import load as load

__version__ = "0.1.0"


def __getattr__(name: str):
    if name == "load":  # with JAX, which takes seconds
        from cot_flax.serving.asking import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
