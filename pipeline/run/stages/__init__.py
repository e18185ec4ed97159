"""One file a stage: what it reads, what it refuses before any work, and what it makes from which files."""
