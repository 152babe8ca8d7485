# The report: one page on the claims, from a study's tables alone.


rule report:
    input:
        [path for experiment in TABLED for path in files(experiment)],
        f"{FOLDER}/runs.csv",
        notebook="notebooks/report.ipynb",
        claims=study.claims,
    output:
        executed=f"{FOLDER}/runs/report/report.ipynb",
        claims=f"{FOLDER}/claims.csv",
        page=f"{FOLDER}/claims.md",
        report=f"{FOLDER}/report.html",
    log:
        f"{FOLDER}/runs/report/log.txt",
    params:
        folder=FOLDER,
        parameters=json.dumps({"results": FOLDER, "claims": study.claims, "output": FOLDER}),
    shell:
        "{BORN} {SCRIPTS}/run_notebook.py {input.notebook:q} {output.executed:q}"
        " --parameters {params.parameters:q} > {log:q} 2>&1"
        " && {BORN} {SCRIPTS}/export_report.py {output.executed:q} {output.report:q}"
        " >> {log:q} 2>&1"
