"""What others are told of a worker's work, which does not need it: counts for Prometheus, spans for OpenTelemetry."""
