"""One mixture YAML: planned, packed, shuffled and written as traceable shards."""
