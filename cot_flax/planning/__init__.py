"""A plan before the bill: does a run fit a slice or a GPU, how fast, how many bytes, what price?"""
