"""`diffprobe bench`: our implementation, a baseline and a lower bound (the floor), timed in one run."""
