"""`make compose-check`: deploy/compose.yaml started for real by podman, with a job through PostgreSQL."""
