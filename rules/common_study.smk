"""The study, its trials and its best run: functions that several rules share."""


def tuned_pointer():
    """Return the path of the file that points to the best run of the study."""
    return f"{RESULTS}/tune/{plans.study_id(experiment)}/best.json"


def study_code(wildcards):
    """Return a text that changes with the code of all models and hooks that the study may use."""
    return code_of_study()


@cache
def code_of_study():
    """Return `study_code`, which is the same for every trial."""
    return experiments.digest([code_state(run) for run in plans.studied(experiment)], "code")


def study_sources(wildcards):
    """Return the statements of all trainings that a trial or the best run may start from."""
    return sources_of(plans.studied(experiment))


def study_results(wildcards):
    """Return the result of the study, or nothing if the experiment has none."""
    return tuned_pointer() if experiment.tune else []


def lacks_trial(number):
    """Return True if a trial, or its suggestion, has no file."""
    return not all(Path(f"{TUNE}/{name}-{number:04d}.json").exists() for name in ("suggest", "trial"))


def earlier_trials(wildcards):
    """Return the previous suggestion and the newest result that this suggestion may use."""
    number, window = int(wildcards.number), experiment.tune.window
    inputs = (
        {"previous": f"{RESULTS}/tune/{wildcards.study}/suggest-{number - 1:04d}.json"} if number > 0 else {}
    )
    if number >= window:
        inputs["result"] = f"{RESULTS}/tune/{wildcards.study}/trial-{number - window:04d}.json"
    return inputs | pack_of_trial(number)


def trial_inputs(wildcards):
    """Return the inputs of a trial: its suggestion, its data, what it may start from, and its pack, if any."""
    number = int(wildcards.number)
    return {
        "suggestion": f"{RESULTS}/tune/{wildcards.study}/suggest-{number:04d}.json",
        "data": f"{RESULTS}/data/{plans.data_id(plans.tuned_base(experiment))}.json",
        "sources": study_sources(wildcards),
    } | pack_of_trial(number)
