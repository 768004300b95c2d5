"""The daemon: wires control, store, kernel, engine and API. The only package that knows them all."""
