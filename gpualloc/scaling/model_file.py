"""The fitted model as one JSON file: rows and coefficients as plain numbers, large matrices packed."""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from gpualloc.errors import UsageError
from gpualloc.plain_data import from_json
from gpualloc.scaling.fit import ClusterFit
from gpualloc.scaling.frame import Frame, JobFrame
from gpualloc.scaling.model import FittedCluster, Origin, ScalingModel
from gpualloc.scaling.placement import Array
from gpualloc.scaling.priors import Priors
from gpualloc.scaling.records import StepRow
from gpualloc.scaling.residuals import Residuals, restore_residuals
from gpualloc.whole_files import write_whole

SCHEMA = "gpualloc scaling model"
SCHEMA_VERSION = 4  # before: other terms, or other intervals and no residuals of single GPUs; the rows are fitted again
_ROW_FIELDS = tuple(field.name for field in fields(StepRow))


def write_model(model: ScalingModel, path: Path) -> None:
    """Writes the model; the file is whole or not there.

    Raises:
        UsageError: the path cannot be written.
    """
    data = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "priors": asdict(model.priors),
        "row_fields": _ROW_FIELDS,
        "rows": [[getattr(row, name) for name in _ROW_FIELDS] for row in model.rows],
        "clusters": {name: _cluster_json(cluster) for name, cluster in model.clusters.items()},
    }
    try:
        write_whole(path, json.dumps(data, allow_nan=False) + "\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}; name a file in a folder that exists") from error


def read_model(path: Path) -> ScalingModel:
    """Reads what `write_model` wrote.

    Raises:
        UsageError: it cannot be read, is of a newer schema, or is not a scaling model.
    """
    remedy = "write it again with gpualloc forecast fit"
    try:
        data = from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}; {remedy}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON, or not all of it is there ({error}); {remedy}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise UsageError(f"{path} is not a scaling model; {remedy}")
    version = data.get("schema_version")
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema_version {version!r}, this gpualloc reads up to {SCHEMA_VERSION}; upgrade gpualloc, or {remedy}"
        )
    try:
        rows = [StepRow(**dict(zip(data["row_fields"], values, strict=True))) for values in data["rows"]]
        if version < SCHEMA_VERSION:
            return ScalingModel.fit(rows)
        priors = Priors(**data["priors"])
        clusters = {name: _cluster(cluster, priors) for name, cluster in data["clusters"].items()}
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, zlib.error) as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}: {error}); {remedy}") from error
    return ScalingModel(rows=rows, clusters=clusters, priors=priors)


def _cluster_json(cluster: FittedCluster) -> dict[str, Any]:
    fit = cluster.fit
    return {
        "frame": asdict(fit.frame),
        "level": fit.level,
        "coefficients": [[name, value] for name, value in zip(fit.names, fit.coefficients.tolist(), strict=True)],
        "covariance": _packed(fit.covariance),
        "residuals": {
            job: {"points": _packed(each.points), "keys": each.keys, "values": each.values.tolist(), "noise": each.noise.tolist()}
            for job, each in cluster.residuals.items()
        },
        "origins": {job: asdict(origin) for job, origin in cluster.origins.items()},
        "like": cluster.like,
    }


def _cluster(data: dict[str, Any], priors: Priors) -> FittedCluster:
    frame = dict(data["frame"])
    jobs = tuple(JobFrame(**{name: _tuples(value) for name, value in job.items()}) for job in frame.pop("jobs"))
    fit = ClusterFit(
        frame=Frame(jobs=jobs, **{name: _tuples(value) for name, value in frame.items()}),
        level=float(data["level"]),
        coefficients=np.array([value for _, value in data["coefficients"]], dtype=float),
        names=tuple(name for name, _ in data["coefficients"]),
        covariance=_unpacked(data["covariance"]),
    )
    residuals: dict[str, Residuals] = {
        job: restore_residuals(_unpacked(each["points"]), tuple(each["keys"]), np.array(each["values"]), np.array(each["noise"]), priors)
        for job, each in data["residuals"].items()
    }
    origins = {job: Origin(**origin) for job, origin in data["origins"].items()}
    return FittedCluster(fit=fit, residuals=residuals, origins=origins, like=data["like"])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _packed(matrix: Array) -> dict[str, Any]:
    """Single precision is enough for variances and places."""
    return {"shape": matrix.shape, "float32_zlib_base64": base64.b64encode(zlib.compress(matrix.astype("<f4").tobytes(), 1)).decode()}


def _unpacked(data: dict[str, Any]) -> Array:
    raw = zlib.decompress(base64.b64decode(data["float32_zlib_base64"]))
    return np.asarray(np.frombuffer(raw, dtype="<f4").astype(float).reshape(data["shape"]))
