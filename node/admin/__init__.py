"""The operator's view of a running node, and what can be done with it (``/admin``)."""
