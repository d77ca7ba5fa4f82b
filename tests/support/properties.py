"""Properties that Hypothesis looks for counterexamples to, on a machine of any speed."""

from hypothesis import HealthCheck, settings

UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""Settings under which a busy machine fails no test: an example may take as long as it takes."""
