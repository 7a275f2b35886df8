"""Jobs, their results, and who looks at them."""
