"""A machine: what it is, what it runs and how well."""
