"""The command line: one verb a file. A verb parses its arguments, calls one function and prints; logic lives below.

A verb's file offers ``HELP`` (one line), ``add_arguments(parser)`` and ``run(args) -> int`` (the exit status). At its
top it imports the standard library and `diffprobe.core.errors` only, so that ``diffprobe --help`` stays fast.
"""

SHARED = ("main",)
"""Files of this folder that are not a verb."""
