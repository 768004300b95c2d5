"""The command `hyperplane-nat`.

main.py is its entry, commands.py its verbs and options; nat.py and demo.py are the verbs; render.py and live.py make
what people read, lines.py what programs read; signals.py and loop.py end it in order. docs/cli.md is the reference.
"""
