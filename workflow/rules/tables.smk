# From records to tables, figures and pages, experiment by experiment.

for experiment in TABLED:

    rule:
        name: f"{experiment}_table"
        input:
            [f"{folder}/record.json" for folder in collected(experiment)],
        output:
            files(experiment),
        params:
            experiment=experiment,
            folder=FOLDER,
            folders=collected(experiment),
            missing=len(RUNS[study.collected[experiment]]) - len(collected(experiment)),
            description=lambda wildcards: study.description,  # a function's braces are no wildcards
        shell:
            "{BORN} {SCRIPTS}/collect.py {params.experiment} {params.folder:q}"
            " {params.folders:q} --description {params.description:q} --missing {params.missing}"


rule records:
    input:
        [f"{folder}/record.json" for experiment in RUNS for folder in collected(experiment)],
    output:
        f"{FOLDER}/runs.csv",
        f"{FOLDER}/{ARCHIVE}",
    params:
        folder=FOLDER,
        runs=[f"{experiment}/{run}" for experiment in RUNS for run in RUNS[experiment]],
        description=lambda wildcards: study.description,
        claims=study.claims,
    shell:
        "{BORN} {SCRIPTS}/keep_records.py {params.folder:q} {params.runs:q}"
        " --description {params.description:q} --claims {params.claims:q}"
