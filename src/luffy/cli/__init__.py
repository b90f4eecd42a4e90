"""The commands: they parse, call and print. Results go to stdout, progress and messages to stderr.

Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 130 stopped by Ctrl-C, 143 stopped by a request to
terminate (SIGTERM): a scheduler may start the same command again, and it goes on.
"""

from luffy.cli.entry import main
from luffy.cli.root import application

__all__ = ["application", "main"]
