"""What notebooks use: images to features to probes in a few lines, on the path of the command line."""
