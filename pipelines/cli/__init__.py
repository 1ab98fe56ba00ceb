"""The `gristmill` command: data on stdout, everything else on stderr; heavy imports only inside commands."""
