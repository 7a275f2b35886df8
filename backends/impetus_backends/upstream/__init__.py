"""Generation by another program: any server that speaks OpenAI's API, behind this queue's promises.

`address` reaches it, `requests` says in its words what is wanted, `exchange` is one request on its way, `events` reads
the bytes that come back, `answers` understands them, `failures` what went wrong, and `engine` drives them as every
other engine is driven.
"""
