"""NetworkPolicy and ClusterNetworkPolicy: load, compile, decide, explain. Pure functions over plain data."""
