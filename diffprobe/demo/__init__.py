"""`diffprobe demo`: a list of runs of experiment files, their tables, and a report page."""
