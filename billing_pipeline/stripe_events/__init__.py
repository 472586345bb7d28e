"""STRIPE EVENTS: the events that the webhook handler stored, applied to customers and ledger.

    stripe_events (received) → handler of its type → read model, ledger → processed

- `inbox`     the event records: which are due, and the state of each
- `handlers`  one small function per type of event, in one registry
- `applying`  each event applied and marked in one transaction; one that fails stops no other
- `backstop`  events that no webhook delivered, found in Stripe's list of events
"""
