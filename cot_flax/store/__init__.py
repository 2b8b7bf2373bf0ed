"""Stores of teacher data: made by `prepare`, checked and read by tasks.

`layout.py` is what lies on the disk, `prepare.py` makes it on one machine and `beam.py` on many,
`make.py` is the stage as gin binds it, `tasks.py` gives a store to SeqIO.
"""
