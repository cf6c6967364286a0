"""The core of trireme-py: the exchange, the packets and the state, without any I/O."""
