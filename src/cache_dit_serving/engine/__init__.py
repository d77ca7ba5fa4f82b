"""The server's own work, without a transport: admit, plan, wait, deliver, keep jobs."""
