"""Schemas of requests and answers, and of the values inside them. Independent of torch and HTTP."""
