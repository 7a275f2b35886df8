"""What `impetus-worker verify` holds a machine against, and how its answers are told to others.

`claims.py` has the figures that the project was given, `roofs.py` what chips can do at most, `check.py` a line of the
report, `figures.py` measures, and `board.py` is the report as it is sent.
"""
