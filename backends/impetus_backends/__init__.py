"""Models on devices: embedding and generation backends, and the dispatcher that chooses among them."""
