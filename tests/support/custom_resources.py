"""The fields of the custom resources that deploy/kubernetes uses, by their operators' references.

ServiceMonitor and PrometheusRule: https://prometheus-operator.dev/docs/api-reference/api/ (monitoring.coreos.com/v1).
ScaledObject: https://keda.sh/docs/2.17/reference/scaledobject-spec/ and its Prometheus scaler. Their definitions are in
no package that is small enough for a test, so the fields in use are written down here.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
DURATION: Schema = {"type": "string", "pattern": r"^(\d+(ms|s|m|h|d|w|y))+$"}
NUMBER_AS_TEXT: Schema = {"type": "string", "pattern": r"^\d+(\.\d+)?$"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def fields(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """Return the schema of an object that has these fields and no others."""
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": list(required)}


def items(schema: Schema) -> Schema:
    """Return the schema of a list that is not empty."""
    return {"type": "array", "minItems": 1, "items": schema}


def resource(version: str, kind: str, spec: Schema) -> Schema:
    """Return the schema of a resource."""
    metadata = fields(("name",), name=TEXT, namespace=TEXT, labels=TEXTS)
    return fields(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


POLICIES = items(
    fields(("type", "value", "periodSeconds"), type={"enum": ["Pods", "Percent"]}, value=COUNT, periodSeconds=COUNT)
)
DIRECTION = fields(stabilizationWindowSeconds=COUNT | {"maximum": 3600}, policies=POLICIES)
TRIGGER = fields(
    ("type", "metadata"),
    type={"const": "prometheus"},
    name=TEXT,
    metricType={"enum": ["AverageValue", "Value"]},
    metadata=fields(("serverAddress", "query", "threshold"), serverAddress=TEXT, query=TEXT, threshold=NUMBER_AS_TEXT),
)
RULE = fields(("alert", "expr"), alert=TEXT, expr=TEXT, labels=TEXTS, annotations=TEXTS, **{"for": DURATION})
SCHEMAS = {
    "ServiceMonitor": resource(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        fields(
            ("selector", "endpoints"),
            selector=fields(matchLabels=TEXTS),
            endpoints=items(fields(("port",), port=TEXT, path=TEXT, interval=DURATION, scrapeTimeout=DURATION)),
        ),
    ),
    "PrometheusRule": resource(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        fields(("groups",), groups=items(fields(("name", "rules"), name=TEXT, rules=items(RULE)))),
    ),
    "ScaledObject": resource(
        "keda.sh/v1alpha1",
        "ScaledObject",
        fields(
            ("scaleTargetRef", "triggers"),
            scaleTargetRef=fields(("name",), name=TEXT),
            pollingInterval=COUNT,
            minReplicaCount=COUNT,
            maxReplicaCount=COUNT,
            fallback=fields(("failureThreshold", "replicas"), failureThreshold=COUNT, replicas=COUNT),
            triggers=items(TRIGGER),
            advanced=fields(
                horizontalPodAutoscalerConfig=fields(behavior=fields(scaleUp=DIRECTION, scaleDown=DIRECTION))
            ),
        ),
    ),
}
