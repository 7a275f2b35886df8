"""Where documents are: folders, other machines by URL, databases by a query."""
