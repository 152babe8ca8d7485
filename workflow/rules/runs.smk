# Every run of a notebook: first those that train networks, then those that begin with one.


def parameters(wildcards):
    """What papermill hands to a run's notebook, as JSON."""
    run = RUNS[wildcards.experiment][wildcards.run]
    networks = {}
    if run.network:
        networks["network"], *copies = network(wildcards)
        networks |= {"copies": copies} if copies else {}
    return json.dumps(run.parameters | networks)


def network(wildcards):
    """The trained network that a run starts from, and copies of it if it asks for them."""
    run = RUNS[wildcards.experiment][wildcards.run]
    names = [run.network, *run.copies] if run.network else []
    return [f"{FOLDER}/runs/accuracy/{name}/network.pt" for name in names]


EXECUTE = (
    "{BORN} {SCRIPTS}/run_notebook.py {input.notebook:q} {output.executed:q}"
    " --parameters {params.parameters:q} --rules {study.claims:q} {CHOSEN} {resources.options}"
    " > {log:q} 2>&1"
)


# A rule for every block of a grid, for a rule has one priority: trainings go first, then what begins
# with their networks or is free of them; of both, what belongs to an earlier block.
for experiment, block in BLOCKS:

    rule:
        name: f"{experiment}_run" + (f"_{block + 1}" if block else "")
        input:
            network,
            notebook="notebooks/{experiment}.ipynb",
        output:
            record=f"{RUN}/record.json",
            leaves=[f"{RUN}/{name}" for name in CATALOGUE[experiment].leaves],
            executed=f"{RUN}/{{experiment}}.ipynb",
        log:
            f"{RUN}/log.txt",
        wildcard_constraints:
            experiment=experiment,
            run="|".join(BLOCKS[experiment, block]),
        params:
            parameters=parameters,
        priority: len(BLOCKS) * (1 + (experiment == "accuracy")) - block
        threads: study.threads
        retries: study.limits[experiment].retries
        resources:
            **resources(experiment),
        shell:
            EXECUTE
