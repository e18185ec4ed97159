"""What a person sees: progress, tables, reports, contact sheets."""
