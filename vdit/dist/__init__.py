"""Devices: the mesh, the one table that places logical axes on it, multi-host start-up."""
