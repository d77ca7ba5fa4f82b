"""From a request to a call that can run, and every refusal on the way. Pure: no torch, no weights, no clock."""
