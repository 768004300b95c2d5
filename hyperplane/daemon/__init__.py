"""The daemon: wires control, store, kernel, engine and API. The only package that knows them all.

main.py is the process, parts.py puts it together. service.py is what the API calls: control decides, ledger.py keeps it
in the store, executor.py has it carried out (turns.py: in threads, in order; drains.py: ends) by actuator.py.
supervisor.py keeps an engine running; reconcile.py compares store, kernel and engine; looking.py reads counters and
flows. fresh.py makes namespaces, pool.py keeps environments ready, descriptors.py takes TUN descriptors, peers.py says
who may give which namespace.
"""
