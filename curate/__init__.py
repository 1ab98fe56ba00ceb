"""WARC records in, scored and deduplicated documents out."""
