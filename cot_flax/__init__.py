"""cot-flax: teach small models to reason step by step.

Shape letters, used as suffixes of array names all over the package:
  B batch    S encoder length    T decoder length    V vocabulary
  K top-k    D model width       H heads             F mlp width
  N samples a prompt             C head width
"""

__version__ = "0.1.0"
