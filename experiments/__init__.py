"""Everything that runs: configuration, command lines, results."""
