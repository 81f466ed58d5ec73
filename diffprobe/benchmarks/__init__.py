"""What `diffprobe bench` does: ours, a baseline and a floor, timed in one run."""
