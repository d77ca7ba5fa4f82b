"""Planning: validation of a request and its translation to a pipeline call. Pure: no torch, no weights, no clock."""
