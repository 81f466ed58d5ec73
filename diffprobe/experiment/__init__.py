"""What the verbs do: each module takes a judged config, calls the packages below in order, and returns what it made.

The command line parses and prints; a notebook calls these functions directly.
"""
