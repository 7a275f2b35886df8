"""The batch that runs: which rows are read and decoded in a step, and what is drawn for them."""
