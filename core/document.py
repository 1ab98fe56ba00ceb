"""The columns that a document carries from its WARC record to the curated Parquet."""

from __future__ import annotations

import pyarrow as pa

PAGE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),  # 32 hex digits: core.hashing.document_id
        ("text", pa.string()),
        ("url", pa.string()),  # WARC-Target-URI, as recorded
        ("date", pa.string()),  # WARC-Date, as recorded
        ("warc_file", pa.string()),  # input-relative name
        ("warc_offset", pa.int64()),  # compressed offset of the record's gzip member
        ("warc_inner", pa.int64()),  # offset inside that member (0 but for members with several records)
        ("warc_length", pa.int64()),  # compressed length
        ("warc_record_id", pa.string()),
        ("charset", pa.string()),
        ("language", pa.string()),  # fastText label, ISO 639
        ("language_score", pa.float32()),
        # what the page says of itself; null where it does not, or where the engine does not look
        ("title", pa.string()),
        ("published", pa.string()),  # ISO date
        ("html_lang", pa.string()),  # <html lang>, lower case, as written
        ("canonical_url", pa.string()),
        ("optout", pa.string()),  # comma-separated signals against use, as `x-robots-tag:noai`
    ]
)
"""One row per extracted page: the outputs of `curate.pages`."""

CURATED_SCHEMA = pa.schema(
    [
        *PAGE_SCHEMA,
        ("text_version", pa.string()),  # "raw", or "c4" or "refinedweb" where those rules rewrote the text
        ("quality", pa.float32()),  # null when no quality model ran
        ("dup_cluster", pa.string()),  # id of the near-duplicate cluster's keeper; the document's own id when alone
        ("dup_cluster_size", pa.int32()),  # members of that cluster, exact copies included
        ("dup_exact_copies", pa.int32()),  # byte-equal copies of the (normalised) text, this one included
        ("pii_emails", pa.int32()),  # addresses replaced in the text; null where none were looked for
        ("pii_ips", pa.int32()),
    ]
)
"""One row per kept document: the outputs of `curate`."""

DROP_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("url", pa.string()),
        ("warc_file", pa.string()),
        ("warc_offset", pa.int64()),
        ("warc_length", pa.int64()),
        ("reason", pa.string()),
        ("value", pa.float64()),  # the measured value, null where the reason has none
        ("threshold", pa.float64()),
    ]
)
"""One row per dropped or quarantined document or record: `drops.parquet` beside a stage's output."""
