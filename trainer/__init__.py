"""Packed shards in, checkpoints out: the only room that knows torch."""
