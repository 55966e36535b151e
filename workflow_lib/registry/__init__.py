"""A registry of models in a folder: numbered versions, and aliases such as `champion`.

versions      versions of a model, published whole and never changed
aliases       which version has an alias, and every decision about it
gate          the decision: better than the version that has the alias, by more than noise, on the same test samples
card          the model card
overview      versions and decisions as they are now, for lists and pages
page          the page on the versions and decisions, beside the report
mlflow_copy   a copy in MLflow's registry
registering   the rule `register`, and promotion by hand

Nothing needs a lock: a version and a decision get their number by an operation that only one process can succeed in.
"""

from workflow_lib.registry.listing import listing
from workflow_lib.registry.overview import Overview, State, of_experiment
from workflow_lib.registry.registering import promote, register

__all__ = ["Overview", "State", "listing", "of_experiment", "promote", "register"]
