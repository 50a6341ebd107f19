"""Fault campaigns: what docs/reliability.md promises, tried out on the training program itself.

python -m tests.faults [--short] [--only NAME ...] [--out FILE.json]

Each family is a module with a PROMISE and a function `campaign(bench) -> Report`. pytest does not
collect them; they start, break and restart whole programs.
"""
