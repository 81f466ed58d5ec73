"""The command line: one verb per file. A verb parses its arguments, calls one function and prints the result.

A verb's file defines ``GROUP`` (one of `arguments.GROUPS`), ``HELP`` (one line of at most 64 characters),
``add_arguments(parser)`` and ``run(args) -> int`` (the exit status). ``TAKES_PROCESSES = True`` marks a verb that
several processes of one launcher may run together; all others are refused there. At module level it imports the
standard library, `arguments.py`, and `errors` and `processes` of `diffprobe.core` only, so that ``diffprobe --help``
stays fast.
"""

SHARED = ("arguments", "main", "reference")
"""Files of this folder that are not verbs."""
