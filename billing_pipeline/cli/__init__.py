"""The `billing` command: one file per noun.

`app` puts the commands together and turns errors into exit codes. `options` reads what a person
types, `context` opens what a command works with, `output` prints its answer.

A command imports what it needs when it runs, so that `billing --help` is fast.
"""
