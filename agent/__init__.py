"""The node agent: the only place with sockets, threads, clocks and logs."""
