"""`python -m gristmill.pipelines` is the `gristmill` command."""

from gristmill.pipelines.cli.main import main

if __name__ == "__main__":
    main()
