"""A model on several processes, one for each GPU, behind the protocol of the one that runs in this process."""
