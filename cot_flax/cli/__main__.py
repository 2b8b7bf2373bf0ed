"""`python -m cot_flax.cli`: the same as `cot-flax`."""

from cot_flax.cli import main

if __name__ == "__main__":
    main()
