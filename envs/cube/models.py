"""The MuJoCo models of OGBench-Cube: OGBench's own for physics, and two for rendering.

`reference` images use OGBench's meshes (185,000 triangles), four samples per pixel and a 4096 px shadow map. `fast`
ones use meshes decimated to 11,000 triangles, one sample and a 512 px map: eight times faster on a software
rasteriser, with a mean difference of one grey level of 255.

The models are made from the installed ogbench at first use, in about 4 s, and kept in a cache folder:
`$LEWM_GYM_CACHE`, else `$XDG_CACHE_HOME/lewm_gym`, else `~/.cache/lewm_gym`; it may be deleted at any time. A process
that finds them there starts in 1 s and takes 380 MB in all; without, 2 s and 700 MB, since dm_control's description
of the scene and MuJoCo's compiler keep copies of every mesh.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs.cube.mesh_decimation import Decimation, decimate
from envs.mujoco_rendering import INSTALL_EXTRA, free_at_exit, load_mujoco
from lewm_gym.files import cache_folder

CUBE_HALF_SIZE = 0.02  # m
#: Chosen by eye: at 224 px a pixel is about 4 mm wide.
DECIMATION = Decimation(keep=0.05, least_faces=60, aggressiveness=2.0, stuck_faces=400, grid=0.004)
_DRAWN_GROUPS = 3  # MuJoCo draws geometry of groups 0, 1 and 2; collision shapes are in 3 and above


@functools.lru_cache(maxsize=8)
def physics_model(half_size: float = CUBE_HALF_SIZE) -> Any:
    """Returns OGBench's model with a cube of that half width (m) and the same density; not to be changed.

    Raises:
        ImportError: If a package is missing, here and below.
    """
    original = _models()["physics"]
    if half_size == CUBE_HALF_SIZE:
        return original
    mujoco = load_mujoco()
    model = copy.copy(original)
    resize_cube(model, half_size)
    body, scale = model.body("object_0").id, half_size / CUBE_HALF_SIZE
    model.body_mass[body] *= scale**3
    model.body_inertia[body] *= scale**5
    mujoco.mj_setConst(model, mujoco.MjData(model))  # what the compiler derives from masses
    return model


def arm_model() -> Any:
    """Returns the model of the arm alone with which OGBench solves inverse kinematics; not to be changed."""
    return _models()["arm"]


def picture_model(quality: str) -> Any:
    """Returns a new model for rendering: the arm, the cube and the floor, without target marker and collision shapes.

    Args:
        quality: "fast" or "reference".
    """
    return _picture_spec(describe_cube()).compile() if quality == "reference" else copy.copy(_models()["picture"])


def resize_cube(model: Any, half_size: float) -> None:
    """Changes the cube's shape in a model, not its mass."""
    geom = model.geom("object_0").id
    model.geom_size[geom] = half_size
    model.geom_rbound[geom] = half_size * np.sqrt(3.0)
    model.geom_aabb[geom, 3:] = half_size


# Making them --------------------------------------------------------------------------------------------------


def describe_cube() -> Any:
    """Returns OGBench's cube-single environment with its scene described, not compiled: call `compile_model_and_data`.

    Raises:
        ImportError: If ogbench or dm_control is missing.
    """
    load_mujoco()
    try:
        module = importlib.import_module("ogbench.manipspace.envs.cube_env")
    except ModuleNotFoundError as error:
        raise ImportError(f"Cube needs {error.name}: {INSTALL_EXTRA}") from error
    free_at_exit()  # ogbench imports dm_control
    environment = module.CubeEnv(
        env_type="single",
        ob_type="pixels",  # paints the gripper purple
        mode="data_collection",
        terminate_at_goal=False,
        visualize_info=False,
        pixel_transparent_arm=False,
    )
    environment._mjcf_model = environment.build_mjcf_model()
    return environment


def _make_models() -> dict[str, Any]:
    environment = describe_cube()
    environment.compile_model_and_data()
    picture = _decimated(_picture_spec(environment), environment.model)
    return {"physics": environment.model, "arm": environment._ik._model, "picture": picture}


def _picture_spec(environment: Any) -> Any:
    """Returns OGBench's scene as an editable specification, without what is not rendered."""
    utilities = importlib.import_module("ogbench.manipspace.mjcf_utils")
    scene = environment.mjcf_model
    spec = load_mujoco().MjSpec.from_string(utilities.to_string(scene), assets=utilities.get_assets(scene))
    for geom in list(spec.geoms):
        if geom.group >= _DRAWN_GROUPS or geom.name == "target_object_0":
            spec.delete(geom)
    spec.geom("object_0").rgba = environment._cube_colors[0]  # OGBench paints it when an episode begins
    return spec


def _decimated(spec: Any, original: Any) -> Any:
    """Returns `spec` compiled with fewer triangles; `original` is the compiled model that has all of them."""
    for mesh in spec.meshes:
        vertices, faces = decimate(*_mesh(original, mesh.name), DECIMATION)
        mesh.file, mesh.scale = "", (1.0, 1.0, 1.0)
        mesh.uservert, mesh.userface = vertices.ravel().tolist(), faces.ravel().tolist()
        # Volume is undefined for meshes with holes, and the compiler rejects those; masses do not matter here.
        mesh.inertia = load_mujoco().mjtMeshInertia.mjMESH_INERTIA_SHELL
    return spec.compile()


def _mesh(model: Any, name: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Returns a compiled model's mesh, vertices (n, 3) in the frame of the file it came from and faces (m, 3)."""
    mesh = model.mesh(name).id
    vertices = model.mesh_vert[model.mesh_vertadr[mesh] :][: model.mesh_vertnum[mesh]].astype(np.float64)
    faces = model.mesh_face[model.mesh_faceadr[mesh] :][: model.mesh_facenum[mesh]].astype(np.int64)
    rotation = np.empty(9)
    load_mujoco().mju_quat2Mat(rotation, model.mesh_quat[mesh])  # the compiler moved it to its inertia's frame
    return vertices @ rotation.reshape(3, 3).T + model.mesh_pos[mesh], faces


# The cache ----------------------------------------------------------------------------------------------------


@functools.cache
def _models() -> dict[str, Any]:
    """Returns the models `physics`, `arm` and `picture`, from the cache, or creates them and stores them there."""
    folder = cache_folder() / f"cube-{_cache_key()}"
    models = {name: _read_model(folder / f"{name}.mjb") for name in ("physics", "arm", "picture")}
    if any(model is None for model in models.values()):
        models = _make_models()
        for name, model in models.items():
            _write_model(folder / f"{name}.mjb", model)
    return models


def _cache_key() -> str:
    """Returns a name for all that the decimated model depends on; MuJoCo reads only files of its own version."""
    versions = [version(package) for package in ("mujoco", "ogbench", "fast-simplification")]
    return hashlib.sha256(repr((versions, platform.machine(), DECIMATION)).encode()).hexdigest()[:16]


def _read_model(path: Path) -> Any:
    """Returns the model at `path`, whose first 32 bytes are a digest, or None if there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:  # MuJoCo may abort the process on a damaged file
        return None
    return load_mujoco().MjModel.from_binary_path("model.mjb", {"model.mjb": content[32:]})


def _write_model(path: Path, model: Any) -> None:
    """Stores the model at `path` atomically; a folder that is not writable is no error."""
    mujoco = load_mujoco()
    buffer = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, buffer)
    content = buffer.tobytes()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder) / path.name
            new.write_bytes(hashlib.sha256(content).digest() + content)
            new.replace(path)  # workers that start together each write, and any one's file will do
