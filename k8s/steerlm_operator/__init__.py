"""The operator: runs ``SteerLMPipeline`` resources as Jobs and inference servers.

Belongs here: naming, building and watching Kubernetes objects, and deciding what comes next. Does not: what a stage is or does
(``nemo_steerlm.pipeline``), and anything that computes.

    handlers    kopf: the process's life and credentials
    watches     what there is, kept up to date
    controller  the order of writes       work_queue, memory: what it looks at and remembers
    cluster     requests to the API server
    reconcile   decide(resource, observed) -> decision, pure      progress, readings: its parts
    resources/  plain values in, Kubernetes objects out, pure
    models      the resource, parsed; config: the operator's own settings
"""
