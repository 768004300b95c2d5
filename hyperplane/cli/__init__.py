"""The command `hyperplane-nat`.

main.py is its entry, commands.py its verbs and options, render.py what people and programs read; nat.py and demo.py are
the verbs. docs/cli.md is the reference.
"""
