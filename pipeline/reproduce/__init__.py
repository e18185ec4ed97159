"""`pipeline reproduce`: tables and figures of the paper, with the paper's numbers beside ours."""
