"""Mesh decimation, for rendering at a few pixels per centimetre.

Quadric edge collapse (Garland and Heckbert 1997, by the package fast-simplification) does most of it. It fails on
thin rings and on meshes with many holes, such as a robot arm's sealing rings and flange: these are clustered
on a grid first and then collapsed again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vertices = NDArray[np.float64]  # (n, 3), m
Faces = NDArray[np.int64]  # (m, 3), indices into the vertices


@dataclass(frozen=True)
class Decimation:
    """How far to go.

    Attributes:
        keep: Share of the faces to keep.
        least_faces: Not to go below.
        aggressiveness: Of the collapse; 2 stops at errors of about 3 mm.
        stuck_faces: Above this number of faces after collapsing, vertices are clustered and the rest collapsed again.
        grid: Width of a cluster, m.
    """

    keep: float
    least_faces: int
    aggressiveness: float
    stuck_faces: int
    grid: float


def decimate(vertices: Vertices, faces: Faces, settings: Decimation) -> tuple[Vertices, Faces]:
    """Returns a decimated mesh.

    Args:
        vertices: (n, 3), m; may be given several times, as in files with a normal per corner.
        faces: (m, 3), indices into `vertices`.
        settings: How far to go.

    Raises:
        ImportError: If fast-simplification is missing.
    """
    try:
        from fast_simplification import simplify
    except ModuleNotFoundError as error:
        raise ImportError('mesh decimation needs fast-simplification: pip install "lewm-gym[mujoco]"') from error

    def collapse(vertices: Vertices, faces: Faces) -> tuple[Vertices, Faces]:
        if len(faces) <= target:
            return vertices, faces
        points, triangles = simplify(
            vertices.astype(np.float32), faces.astype(np.int32), target_count=target, agg=settings.aggressiveness
        )
        return points.astype(np.float64), triangles.astype(np.int64)

    target = max(settings.least_faces, int(settings.keep * len(faces)))
    vertices, faces = collapse(*merge_vertices(vertices, faces, 1e-4))
    if len(faces) > settings.stuck_faces:
        vertices, faces = collapse(*merge_vertices(vertices, faces, settings.grid))
    return vertices, faces


def merge_vertices(vertices: Vertices, faces: Faces, grid: float) -> tuple[Vertices, Faces]:
    """Returns the mesh with the vertices of each cell of a grid replaced by their mean; flat and double faces go.

    Args:
        vertices: (n, 3), m.
        faces: (m, 3), indices into `vertices`.
        grid: Width of a cell, m.
    """
    cells = np.floor((vertices - vertices.min(0)) / grid).astype(np.int64)
    _, cell = np.unique(cells, axis=0, return_inverse=True)
    cell = cell.reshape(-1)
    count = np.bincount(cell)
    means = np.stack([np.bincount(cell, vertices[:, axis]) / count for axis in range(3)], axis=1)
    faces = cell[faces]
    a, b, c = faces.T
    faces = faces[(a != b) & (b != c) & (c != a)]
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    faces = faces[np.sort(first)]
    used, faces = np.unique(faces, return_inverse=True)
    return means[used], faces.reshape(-1, 3)
