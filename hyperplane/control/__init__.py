"""Decides: what may exist, what must be done for it. No sockets, no clock of its own: it takes requests, events and the
time, and returns resources, changes to keep and actions to carry out."""
