"""Load on a running server, by its own HTTP: requests, their arrival, the results and reports."""
