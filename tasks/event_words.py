"""A charged event in words, as commands and pages show it to people."""

from typing import Any


def event_text(event: dict[str, Any] | None) -> str:
    """Return an event in words, such as ``8 x (gaussian 0.8 at rate 0.1)``."""
    if event is None:
        return ""
    match event["kind"]:
        case "gaussian":
            return f"gaussian {event['noise_multiplier']:g}"
        case "poisson":
            return f"{event_text(event['event'])} at rate {event['sampling_rate']:g}"
        case "self_composed":
            return f"{event['count']} x ({event_text(event['event'])})"
        case "composed":
            return " + ".join(event_text(each) for each in event["events"])
        case kind:
            return str(kind).replace("_", " ")
