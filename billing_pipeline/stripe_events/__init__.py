"""WHAT STRIPE SAYS: from the events that the webhook handler stored to what follows from them.

    stripe_events (received) → handler of its type → read model, ledger → processed

- `inbox`     the event records: which are due, and what became of each
- `handlers`  one small function per type of event, in one registry
- `applying`  each event applied and marked in one transaction; a poisonous one fails alone
- `backstop`  what no webhook delivered, found in Stripe's own lists
"""
