"""Messages to people when an experiment ends, fails or stalls.

message    what is told, and the key that makes it recognisable
channels   the ways to tell: webhook, Slack, command, mail
outbox     what was told already, so that a restart does not tell it again
stalls     trainings without progress
notifier   the pipeline's side: begin, end, failure

No part of a result: nothing here fails or delays a training.
"""

from workflow_lib.notify.message import Failure
from workflow_lib.notify.notifier import Notifier, check_environment

__all__ = ["Failure", "Notifier", "check_environment"]
