"""One worker among the others: its record, its queues, and what some worker must do for all."""
