"""A packet in, engine.translate() in memory, a packet out: no device, no privilege, no clock but the test's."""
