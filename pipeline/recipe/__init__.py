"""What decides a run, and where it is read from."""
