"""HTML reports: self-contained pages of what a root holds, no scripts and nothing fetched."""
