"""Packs, the runs and trials that one job trains: functions that several rules share."""

@cache
def packs():
    """Return the packs by id: of the runs without a result, if this Snakemake makes the whole pipeline."""
    asked = workflow.dag_settings
    if not workflow.is_main_process or not packing.is_wanted(experiment) or no_packs():
        return {}
    if set(asked.targets) - {"all"} or asked.batch:
        return {}
    names = (results_layout.TRAIN, results_layout.MODEL, results_layout.HISTORY)
    missing = [
        run
        for run in (*trained_first().values(), *runs().values())
        if not all(Path(f"{RESULTS}/runs/{run.id}/{name}").exists() for name in names)
    ]
    has_study = experiment.tune is not None and any(lacks_trial(n) for n in range(experiment.tune.trials))
    return plans.packs(experiment, missing, has_study=has_study, shares=IS_LOCAL and GPUS < 2)


@cache
def pack_of_trial(number):
    """Return the pack of a trial without a result as an input of its jobs, if there is one."""
    study = next((id for id, pack in packs().items() if pack.study), None)
    return {"pack": f"{RESULTS}/packs/{study}.json"} if study and lacks_trial(number) else {}


def no_packs():
    """Return why runs cannot be packed, or None."""
    return packing.obstacle(experiment, is_cluster=not IS_LOCAL)


@cache
def pack_of():
    """Return the pack of each packed run, by their ids; the run `tuned` is trained where its study is."""
    return {
        run: pack.id
        for pack in packs().values()
        for run in [*(run for run, _ in pack.runs), *(["tuned"] if pack.study else [])]
    }


def pack_data(wildcards):
    """Return the data manifests of a pack."""
    pack = packs().get(wildcards.pack) or plans.load_pack(wildcards.pack, WORK)
    return [f"{RESULTS}/data/{data}.json" for data in pack.data]


def pack_threads(wildcards):
    """Return the number of runs that a pack trains at once, each with one thread; on a cluster, the profile sets it."""
    if not IS_LOCAL or not packs():
        return 1
    pack = packs()[wildcards.pack]
    cores = max(1, workflow.cores // GPUS) if GPUS else workflow.cores  # a pack for each GPU
    return min(len(pack.runs) + (experiment.tune.window if pack.study else 0), cores)


def is_handed_out(job):
    """Return True if a pack has put the results of the job into the store."""
    if IS_LOCAL or job.rule.name not in ("train", "trial", "evaluate", "export"):
        return False
    if job.rule.name == "trial":
        number = int(job.wildcards_dict["number"])
        pack, subject = pack_of_trial(number).get("pack"), str(number)
    else:
        subject = job.wildcards_dict["run"]
        pack = f"{RESULTS}/packs/{pack_of()[subject]}.json" if subject in pack_of() else None
    kind = "computed" if job.rule.name in ("evaluate", "export") else "trained"
    return pack is not None and subject in snakefile.done_in_pack(Path(pack))[kind]
