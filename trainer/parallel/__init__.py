"""Processes and what they share: the mesh, the collectives the model calls, and the cutting of parameters."""
