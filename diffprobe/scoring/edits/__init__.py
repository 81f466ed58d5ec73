"""What is done to the features of a tap while a model runs, by one interface: `base.Edit`, a file per kind of edit.

`diffprobe.scoring.steering` applies an edit at a tap, in a window of timesteps, at several strengths.
"""
