"""What is kept of what was computed: by runs until their output is whole, and in stores for good."""
