"""Recipe, stages, run folder, report and command line."""
