"""Where bytes move: ranges into staged files, files into trees. No other package copies or links content."""
