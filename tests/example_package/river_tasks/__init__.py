"""What another team writes to teach a student from its own data: start yours from this package.

`clock.py` says how an answer is read, `tasks.py` registers the tasks, `data/` has the examples and
`gin/` the experiments. None of it stands in cot_flax: put the folder above this one on PYTHONPATH,
and the gin files do the rest, under our trainer and under T5X. Their first lines say how.
"""
