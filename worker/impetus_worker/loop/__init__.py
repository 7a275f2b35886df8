"""The parts of the worker's loop: its engine's side, and how runs and the loop itself end before their time."""
