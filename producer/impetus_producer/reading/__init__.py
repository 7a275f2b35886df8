"""Documents read from files and folders, one at a time and strictly: what is not understood is said, never guessed at.

`source.py` opens what the command line names; `bytes/` turns bytes into lines of text; `formats/` are the formats, and
`folders.py` is one of them; `fields.py` makes a document of a record; `guesses.py` says what standard input looks like;
`duplicates.py` knows which ids came before. No Redis, no model, no output file.
"""
