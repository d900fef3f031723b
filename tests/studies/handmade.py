"""Results that no run made: the fields that figures, tables and claims read."""

import json

from demp.experiments.studies.base import data_read

STEPS_SECONDS = 100.0


def record(job, *, accuracy=0.5, neurons=0.0, weights=0.0, masked=0.0, seconds=STEPS_SECONDS, status="done", **more):
    """A line of results for a job, as a sweep writes it."""
    values = {
        "schema": 1,
        "name": job.name,
        "identity": job.identity,
        "labels": job.labels,
        "work": job.work,
        "arguments": job.arguments,
        "status": status,
        "split": "test",
        "data": data_read(job),
        "eval/top1": accuracy,
        "neuron_sparsity": neurons,
        "weight_sparsity": weights,
        "masked_share": masked,
        "weights_masked": round(1000 * masked),
        "train_flops": 600.0,
        "train_flops_dense": 1000.0,
        "flops": 50,
        "flops_dense": 100,
        "paper_flops": 70,
        "paper_flops_dense": 100,
        "flops_if_zeros_were_free": 20.0,
        "train_seconds": seconds,
        "machine": "a machine, 1 thread",
        "torch": "2",
        "demp": "0",
        "began": "2026-01-01T00:00:00.000+00:00",
        "seconds": seconds,
    }
    return json.loads(json.dumps({**values, **more}))


def made(study, scale, change, seeds=None):
    """A record for every job of a study; ``change(labels)`` says what came out, or None for no run."""
    pairs = [(job, change(job.labels)) for job in study.plan(scale, seeds)]
    return [record(job, **values) for job, values in pairs if values is not None]


def by_sentence(claims, words):
    """The one claim with these words."""
    (found,) = [claim for claim in claims if words in claim.sentence]
    return found
