"""Asking a teacher for chains: what to ask, whom, and how no answer is paid for twice or lost.

`questions.py` reads what to ask about, `recipes.py` and `scenario.py` say how to ask, `client.py`
speaks to a server, `journal.py` remembers its answers, `run.py` makes the samples file.
"""
