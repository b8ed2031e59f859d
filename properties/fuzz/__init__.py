"""Fuzzing: every check again and again, with new seeds, until the time is over.

The work is cut into units: one law of one loss in one kind of world, with one seed. Round r has one unit of
every check. What a unit draws depends on the arguments and on the units of the same check before it alone, so
that it makes no difference in which process, on which machine, or before or after an interruption it is run.
"""
