"""The shape of one transformer, as its `config.json` states it in the words of its family."""
