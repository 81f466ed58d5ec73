"""From a command to jobs of a SLURM cluster and back: plan, scripts, the client of SLURM, records of submissions.

What a run is, and which rows a table has, is known to `runs/submit.py`; here a task is a command and its folder.
"""
