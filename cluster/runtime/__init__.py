"""The Ray cluster itself: attaching to it, its nodes, its jobs, and signals to the driver."""
