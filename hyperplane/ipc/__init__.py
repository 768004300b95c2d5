"""Between daemon and engine: messages over a Unix seqpacket socket, and the descriptors that go with them."""
