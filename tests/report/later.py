"""JSON of the stages after measuring, as their commands write it, with a field that a report does not know."""

from typing import Any

REHEARSAL: dict[str, Any] = {
    "command": "train.py",
    "scaling": "weak",
    "cluster": {"link": "nvlink4"},
    "sizes": [
        {
            "num_gpus": count,
            "steps": {
                "device": "NVIDIA H200",
                "step_time_s": time_s,
                "step_time_low_s": time_s,
                "step_time_high_s": time_s,
                "compute_time_s": 0.1,
                "exposed_comm_s": 0.01,
            },
            "speedup": speedup,
        }
        for count, time_s, speedup in ((1, 0.1, 1.0), (2, 0.11, 1.8))
    ],
}
PLAN: dict[str, Any] = {
    "schema_version": 1,
    "created_at_utc": "2026-11-26T09:00:00+00:00",
    "objective": "mean_jct",
    "seed": 0,
    "cluster": {
        "name": "lab",
        "nodes": [{"name": "a", "gpu_type": "h100", "num_gpus": 2}, {"name": "b", "gpu_type": "l40s", "num_gpus": 1}],
    },
    "assignments": [
        {
            "workload": "train-a",
            "devices": [{"node": "a", "index": 0, "uuid": None}, {"node": "a", "index": 1, "uuid": None}],
            "gpu_type": "h100",
            "strategy": "ddp",
            "precision": "bf16",
            "hook": "gpualloc_auto",
            "per_device_batch_size": 64,
            "start_s": 0.0,
            "finish_s": 36000.0,
            "samples_per_s": {"value": 500.0, "low": 450.0, "high": 520.0, "source": "measured"},
            "cost": {"value": 40.0, "currency": "EUR"},
        }
    ],
    "waiting": [{"workload": "train-b", "reason": "no room"}],
}
FORECAST: list[dict[str, Any]] = [
    {"cluster": "lab", "model": "net", "num_gpus": 4, "step_time_s": 0.1, "low_s": 0.09, "high_s": 0.12, "kind": "interpolates"},
    {"cluster": "lab", "model": "net", "num_gpus": 64, "step_time_s": None, "kind": "refused", "reason": "not enough evidence"},
]
ADVICE: dict[str, Any] = {
    "answer": ["Use 2 GPUs."],
    "device_name": "NVIDIA H200",
    "options": [
        {
            "case": {"model": "net", "precision": "bf16", "strategy": "ddp", "hook": "none", "per_device_batch_size": 32},
            "source": "measured",
            "num_gpus": 2,
            "speedup": {"value": 1.8, "low": 1.7, "high": 1.9},
            "efficiency": {"value": 0.9, "low": 0.9, "high": 0.9},
            "is_chosen": True,
            "why": "fastest",
        }
    ],
    "steps": [{"name": "precision", "decision": "do", "change": "fp32 -> bf16", "gain": None, "reason": "faster"}],
    "measure_next": ["gpualloc bench --gpus 4"],
}
SIMULATION: dict[str, Any] = {
    "step_times": "assumed step times",
    "policies": [{"policy": "greedy", "figures": {"mean_jct_h": {"mean": 0.5, "low": -0.1, "high": 1.1}}, "by_seed": []}],
}
TIMELINE: list[dict[str, Any]] = [
    {
        "policy": "greedy",
        "spans": [
            {"job_id": "job-1", "start_s": 3600.0, "end_s": 10800.0, "gpu_type": "t4", "gpus_by_node": {"a": 2}},
            {"job_id": "job-2", "start_s": 7200.0, "end_s": 9000.0, "gpu_type": "t4", "gpus_by_node": {"a": 1, "b": 1}},
            {"job_id": "job-3", "start_s": 10800.0, "end_s": 12000.0, "gpu_type": "t4", "gpus_by_node": {"a": 2}},
        ],
        "failures": [],
    }
]
