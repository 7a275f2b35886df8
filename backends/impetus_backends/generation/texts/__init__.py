"""From a request to tokens, and from tokens to the text that comes."""
