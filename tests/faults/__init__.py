"""A scriptable fault server and the matrix of HTTP faults."""
