"""Between daemon and engine: messages over a Unix seqpacket socket, and the descriptors that go with them.

messages.py says what is said, transport.py carries it. The engine's side: table.py (its loop is hyperplane.engine).
The daemon's side: conversation.py asks, state.py cuts a full state into messages, remote.py is the engine as the daemon
sees it, with the mirror from which a successor goes on.
"""
