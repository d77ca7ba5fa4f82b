"""What crosses the wire: requests, answers, and the values inside them. Nothing here knows torch or HTTP."""
