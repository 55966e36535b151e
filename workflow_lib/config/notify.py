"""`notify:`, who is told when an experiment ends, fails or stalls.

Addresses, commands and passwords are secrets: the settings name environment variables, and never hold one.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from workflow_lib.plugins import Section

VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
VARIABLE_ALLOWED: dict[str, Any] = {
    "allowed": "the name of an environment variable: capital letters, digits and `_`, or null"
}
HOST = r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$"
ADDRESS = r"^[^@\s,<>]+@[^@\s,<>]+$"
Event = Literal["end", "failure", "stall"]


def _variable(value: Any) -> Any:
    """Return the name of a variable, or null; the error for anything else does not quote it: it may be a secret."""
    if value is None or (isinstance(value, str) and VARIABLE.fullmatch(value)):
        return value
    message = (
        "give the NAME of an environment variable (capital letters, digits and `_`) that holds the value, such as "
        "EVERSTEP_SECRET; the value itself is a secret, which must not stand in an experiment file"
    )
    raise PydanticCustomError("arguments", "{message}", {"message": message})


Variable = Annotated[str | None, BeforeValidator(_variable)]


class Mail(Section):
    """A mail server (SMTP), and who gets mail."""

    host: str = Field(
        pattern=HOST, description="mail server", examples=["smtp.example.org"], json_schema_extra={"allowed": "a host"}
    )
    port: int = Field(587, ge=1, le=65535, description="port of the mail server")
    security: Literal["starttls", "tls", "none"] = Field(
        "starttls", description="encryption: starttls (usually port 587), tls (usually port 465), or none"
    )
    sender: str = Field(
        pattern=ADDRESS,
        description="address of the sender",
        examples=["everstep@example.org"],
        json_schema_extra={"allowed": "a mail address"},
    )
    to: list[Annotated[str, Field(pattern=ADDRESS)]] = Field(
        min_length=1, description="addresses of the receivers", examples=[["me@example.org"]]
    )
    user_env: Variable = Field(
        None,
        description="environment variable that holds the name of the user; null does not log in",
        json_schema_extra=VARIABLE_ALLOWED,
    )
    password_env: Variable = Field(
        None, description="environment variable that holds the password", json_schema_extra=VARIABLE_ALLOWED
    )

    @model_validator(mode="after")
    def _check_login(self) -> Mail:
        if (self.user_env is None) != (self.password_env is None):
            message = "`user_env` and `password_env` belong together: name both, or neither"
        elif self.user_env is not None and self.security == "none":
            message = "`security: none` would send the password unencrypted; allowed with a login: starttls, tls"
        else:
            return self
        raise PydanticCustomError("arguments", "{message}", {"message": message})


class Notify(Section):
    """Messages when the experiment ends, fails or stalls (docs/notifications.md)."""

    events: list[Event] = Field(
        ["end", "failure", "stall"],
        min_length=1,
        description="what is told: the end of the experiment, its failure, a training without progress",
    )
    webhook_env: Variable = Field(
        None,
        description="environment variable that holds a URL, which gets the message as JSON",
        json_schema_extra=VARIABLE_ALLOWED,
    )
    slack_env: Variable = Field(
        None,
        description="environment variable that holds the URL of an incoming webhook of Slack, or of a compatible tool",
        json_schema_extra=VARIABLE_ALLOWED,
    )
    command_env: Variable = Field(
        None,
        description="environment variable that holds a shell command, which gets the message as JSON on its input",
        json_schema_extra=VARIABLE_ALLOWED,
    )
    mail: Mail | None = Field(None, description="null sends no mail")
    stall_minutes: float = Field(
        30.0, gt=0, le=525_600, description="minutes without a new optimizer step after which a training has stalled"
    )
    tries: int = Field(
        3, ge=1, le=10, description="how often a channel is tried at most for a message, over all restarts"
    )
    timeout_s: float = Field(
        10.0, gt=0, le=600, description="seconds that sending may take, for all channels and tries together"
    )

    @model_validator(mode="after")
    def _check_channels(self) -> Notify:
        if not self.variables() and self.mail is None:
            message = "nobody is told: set one of webhook_env, slack_env, command_env and mail"
            raise PydanticCustomError("arguments", "{message}", {"message": message})
        return self

    def variables(self) -> dict[str, str]:
        """Return the environment variables that the settings name, by the dotted name of the setting."""
        named = {name: getattr(self, name) for name in ("webhook_env", "slack_env", "command_env")}
        if self.mail is not None:
            named |= {f"mail.{name}": getattr(self.mail, name) for name in ("user_env", "password_env")}
        return {f"notify.{name}": variable for name, variable in named.items() if variable is not None}
