"""The command line: one verb per file. A verb parses its arguments, calls one function and prints the result.

A verb's file defines ``GROUP`` (one of `arguments.GROUPS`), ``HELP`` (one line of at most 64 characters),
``add_arguments(parser)`` and ``run(args) -> int`` (the exit status). At module level it imports the standard library,
`diffprobe.core.errors` and `diffprobe.cli.arguments` only, so that ``diffprobe --help`` stays fast.
"""

SHARED = ("arguments", "main", "reference")
"""Files of this folder that are not verbs."""
