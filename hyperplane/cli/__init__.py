"""The command `hyperplane-nat`.

main.py is its entry, commands.py its table of commands, failures.py its exit codes. A command's options stand apart
from what it does, which is imported when it runs:

    nouns.py, kinds.py, traffic.py    resource_verbs.py, traffic_verbs.py, asking.py, tables.py
    documents.py                      toml_lines.py, toml_text.py
    run_command.py                    running.py, sandbox.py
    operations.py, service.py         states.py, doctor.py, probes.py, stopping.py
    nat_command.py, demo_command.py   nat.py, demo.py with render.py and live.py (people), lines.py (programs)

terminal.py prints for people, in the words of words.py. signals.py and loop.py end it in order. docs/cli.md is the
reference.
"""
