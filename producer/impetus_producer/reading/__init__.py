"""Documents read from files and folders, one at a time and strictly: what is not understood is said, never guessed at.

`source.py` opens what the command line names; `streams.py` turns bytes into lines of text; `json_documents.py`,
`csv_documents.py`, `lines.py`, `tables.py` and `folders.py` are the formats; `fields.py` makes a document of a record;
`guesses.py` says what standard input looks like; `duplicates.py` knows which ids came before. No Redis, no model, no
output file.
"""
