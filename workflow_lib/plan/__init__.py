"""From an experiment to named, frozen runs."""

from workflow_lib.config.run import RunConfig
from workflow_lib.config.stages import STAGES, stages
from workflow_lib.plan.expansion import Run, apply, base, expand, is_point
from workflow_lib.plan.frozen import freeze, freeze_experiment, load_run
from workflow_lib.plan.listing import columns, parts, table
from workflow_lib.plan.naming import data_id, data_settings, run_digest, run_id, section_digest
from workflow_lib.plan.packing import Pack, freeze_pack, load_pack, packs
from workflow_lib.plan.plan_file import plan, plan_digest, reported_runs, write_plan
from workflow_lib.plan.sources import INIT, STEP_PARAMS, planned_id, sources_of, trained_first
from workflow_lib.plan.study import all_configs, freeze_study, studied, study_digest, study_id, study_metric, tuned_base

__all__ = [
    "INIT",
    "STEP_PARAMS",
    "all_configs",
    "Pack",
    "Run",
    "RunConfig",
    "STAGES",
    "apply",
    "base",
    "columns",
    "data_id",
    "data_settings",
    "expand",
    "freeze",
    "freeze_experiment",
    "freeze_pack",
    "freeze_study",
    "is_point",
    "load_pack",
    "load_run",
    "packs",
    "plan",
    "plan_digest",
    "planned_id",
    "reported_runs",
    "run_digest",
    "run_id",
    "section_digest",
    "sources_of",
    "stages",
    "studied",
    "study_digest",
    "study_id",
    "study_metric",
    "parts",
    "table",
    "trained_first",
    "tuned_base",
    "write_plan",
]
