"""One table: what each protection buys and what it costs, and two runs side by side.

`fedvlm.compare.grid` makes the table, `fedvlm.compare.runs` compares two finished runs.
"""
