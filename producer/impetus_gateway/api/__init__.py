"""The endpoints: what each is asked and answers."""
