"""WHAT WAS SAID: the durable record of every meter event, written before it is sent.

- `tables`   the schema; `migrations/` builds it
- `ledger`   planning, claiming, recording: each method is one transaction
- `locks`    one deliverer per ledger, released by the operating system when it dies
- `adjustments`  what people decided about usage that its own period no longer accepts
- `inquiry`  read-only questions, for people and reports
"""
