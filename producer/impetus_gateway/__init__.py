"""The gateway: OpenAI's HTTP API before the queues. One more producer: it knows no worker, no model and no device."""
