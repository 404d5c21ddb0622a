"""Off-screen rendering of MuJoCo models: choosing OpenGL, one renderer per model, clear errors where OpenGL is missing.

Everything here renders with MuJoCo's own renderer (`MjrContext`). dm_control's renderer must never be used in the
same process: under EGL its frames are silently wrong once the other has rendered (dm_control 1.0.50, mujoco 3.17).

A renderer belongs to a process and a thread, not to an environment: environments pass it a pose and get an image. A
hundred environments share one OpenGL context, and an environment that is never rendered needs no OpenGL.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import functools
import importlib
import importlib.util
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm_gym.tasks import IMAGE_SIZE

Frame = NDArray[np.uint8]

INSTALL_GL = "apt-get update && apt-get install -y libegl1 libegl-mesa0 libgl1 libosmesa6"
INSTALL_EXTRA = 'pip install "lewm-gym[mujoco]"'
#: render_quality -> what it sets of the model's `vis.quality`. Multisampling and a large shadow map are most of the
#: cost on a software rasteriser; the triangles of round shapes (28 x 16 by default) are a quarter of Reacher's.
QUALITIES: dict[str, dict[str, int]] = {
    "fast": {"offsamples": 0, "shadowsize": 512, "numslices": 12, "numstacks": 6},
    "reference": {},
}


def load_mujoco() -> ModuleType:
    """Returns the module `mujoco`, imported for off-screen rendering.

    Chooses `MUJOCO_GL` if it is unset: EGL where it has a device (a GPU's or Mesa's), else OSMesa, else nothing, in
    which case simulation works and rendering raises an error. Never GLFW without a display.

    Raises:
        ImportError: If mujoco or OpenGL is missing, or mujoco is version 4 or later.
    """
    if not os.environ.get("MUJOCO_GL") and sys.platform == "linux":
        os.environ["MUJOCO_GL"] = choose_backend()  # if mujoco is imported already, dm_control may still heed it
    if os.environ.get("OMP_NUM_THREADS") == "1":
        # One thread per process was asked for, as workers are: Mesa's software rasteriser does not heed that name.
        os.environ.setdefault("LP_NUM_THREADS", "0")
    try:
        mujoco = importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        raise ImportError(f"this task needs {error.name}: {INSTALL_EXTRA}") from error
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        # What PyOpenGL raises when the library that MUJOCO_GL names is not installed is an AttributeError on None.
        raise ImportError(
            f"MUJOCO_GL={os.environ.get('MUJOCO_GL')} cannot be used ({error}); unset it, or run: {INSTALL_GL}"
        ) from error
    if int(mujoco.__version__.split(".")[0]) >= 4:
        # dm_control 1.0.50 accepts 4.0.0 and then dies with "'MjModel' object has no attribute 'flex_vertedge'".
        raise ImportError(f'mujoco {mujoco.__version__} is too new for these tasks; run: pip install "mujoco<4"')
    return mujoco


def choose_backend() -> str:
    """Returns what `MUJOCO_GL` should be on this Linux machine: "egl", "osmesa", "glfw" or "disable"."""
    if _egl_device_count() > 0:
        return "egl"
    if ctypes.util.find_library("OSMesa"):
        return "osmesa"
    return "glfw" if os.environ.get("DISPLAY") else "disable"


def _egl_device_count() -> int:
    """Returns how many devices EGL offers; asks without initialising a driver, so that forking stays safe."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return 0
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0


def package_folder(package: str) -> Path:
    """Returns the folder of an installed package without importing it (dm_control takes seconds to import).

    Raises:
        ImportError: If it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"this task needs {package}: {INSTALL_EXTRA}")
    return Path(next(iter(spec.submodule_search_locations)))


class SceneRenderer:
    """Renders one model from one of its cameras, 224x224 px, with its own data: no simulation is affected.

    Set `data.qpos` (and what else moves) and call `draw`. The OpenGL context is made at the first image.

    Args:
        model: The model to render; its `vis` is set according to `quality`.
        camera: Name or number of the camera; -1 is the free camera.
        quality: A key of `QUALITIES`.
    """

    def __init__(self, model: Any, camera: int | str, quality: str = "reference") -> None:
        self._mujoco = load_mujoco()
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, IMAGE_SIZE)
        model.vis.global_.offheight = max(model.vis.global_.offheight, IMAGE_SIZE)
        for name, value in QUALITIES[quality].items():
            setattr(model.vis.quality, name, value)
        self.model = model
        self.data = self._mujoco.MjData(model)
        self.look: Any = None  # whose variations the model now shows; kept by `dress`
        self._camera = self._find_camera(camera)
        self._camera_quaternion = model.cam_quat[max(self._camera.fixedcamid, 0)].copy() if model.ncam else None
        self._scene = self._mujoco.MjvScene(model, maxgeom=1000)
        self._option = self._mujoco.MjvOption()
        self._rectangle = self._mujoco.MjrRect(0, 0, IMAGE_SIZE, IMAGE_SIZE)
        self._buffer = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        self._gl: Any = None
        self._context: Any = None

    def dress(self, look: Any, apply: Callable[[SceneRenderer], None]) -> None:
        """Calls `apply(self)`, which changes the model's appearance, unless `look` (any comparable key) is current."""
        if look != self.look:
            self.look = None  # until `apply` has succeeded
            apply(self)
            self.look = look

    def set_texture(self, name: str, data: NDArray[np.uint8]) -> None:
        """Replaces a texture's texels by `data`, as many uint8 values as it has."""
        texture = self.model.texture(name).id
        start = self.model.tex_adr[texture]
        texels = self.model.tex_data[start : start + data.size]
        if np.array_equal(texels, data):
            return
        texels[:] = data
        if self._context is not None:
            self._make_current()
            self._mujoco.mjr_uploadTexture(self.model, self._context, texture)

    def turn_camera(self, yaw: float, pitch: float) -> None:
        """Turns the (fixed) camera from its original direction, rad: about the vertical, then tilting it upwards."""
        mujoco, camera = self._mujoco, self._camera.fixedcamid
        about_vertical, tilt, turned = np.empty(4), np.empty(4), np.empty(4)
        mujoco.mju_axisAngle2Quat(about_vertical, np.array([0.0, 0.0, 1.0]), yaw)
        mujoco.mju_axisAngle2Quat(tilt, np.array([1.0, 0.0, 0.0]), pitch)
        mujoco.mju_mulQuat(turned, about_vertical, self._camera_quaternion)
        mujoco.mju_mulQuat(self.model.cam_quat[camera], turned, tilt)

    def draw(self) -> Frame:
        """Returns the image of `data`'s positions, a fresh (224, 224, 3) uint8 array.

        Raises:
            ImportError: If there is no OpenGL; the message says what to install.
            RuntimeError: If this process was forked after a context was made.
        """
        mujoco = self._mujoco
        self._make_current()
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)  # lights and cameras may follow a centre of mass
        mujoco.mj_camlight(self.model, self.data)
        mujoco.mjv_updateScene(
            self.model, self.data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(self._buffer, None, self._rectangle, self._context)
        return self._buffer[::-1].copy()  # OpenGL's first row is the lowest

    def close(self) -> None:
        """Frees the OpenGL context; a later `draw` makes a new one."""
        if self._context is not None:
            self._gl.make_current()  # or the objects of another context with the same numbers would be freed
            self._context.free()
            self._gl.free()
        self._gl = self._context = None

    def _find_camera(self, camera: int | str) -> Any:
        result = self._mujoco.MjvCamera()
        if camera == -1:
            self._mujoco.mjv_defaultFreeCamera(self.model, result)
        else:
            result.type = self._mujoco.mjtCamera.mjCAMERA_FIXED
            result.fixedcamid = self.model.camera(camera).id
        return result

    def _make_current(self) -> None:
        if self._context is None:
            self._gl = _new_gl_context()
            self._gl.make_current()
            self._context = self._mujoco.MjrContext(self.model, self._mujoco.mjtFontScale.mjFONTSCALE_100.value)
            self._mujoco.mjr_setBuffer(self._mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
            _Contexts.alive.add(self)
        else:
            self._gl.make_current()


class _Contexts:
    """The OpenGL contexts of this process: which process made them, and which are alive."""

    pid: int | None = None
    alive: weakref.WeakSet[SceneRenderer] = weakref.WeakSet()
    abandoned: list[Any] = []
    cache = threading.local()  # a context is current in one thread only


def shared_renderer(key: Sequence[Any], make: Callable[[], SceneRenderer]) -> SceneRenderer:
    """Returns this thread's renderer for `key`, made by `make` at the first call."""
    renderers = _Contexts.cache.__dict__.setdefault("renderers", {})
    key = tuple(key)
    if key not in renderers:
        renderers[key] = make()
    return renderers[key]


def close_renderers() -> None:
    """Frees every OpenGL context of this process; rendering afterwards creates new ones."""
    for renderer in list(_Contexts.alive):
        renderer.close()
    _Contexts.alive.clear()


def _new_gl_context() -> Any:
    if _Contexts.pid not in (None, os.getpid()):
        raise RuntimeError(
            "this process was forked from one that had already rendered, and OpenGL does not survive a fork: "
            'start workers with multiprocessing\'s "spawn" method (AsyncVectorEnv(..., context="spawn"))'
        )
    try:
        context = _gl_context_class()(IMAGE_SIZE, IMAGE_SIZE)
    except Exception as error:  # ImportError, RuntimeError, OpenGL.error.Error: depends on which library is missing
        raise ImportError(
            f"no off-screen OpenGL (MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}): {error}. Run: {INSTALL_GL}"
            " or, where EGL has no device it can use, set MUJOCO_GL=osmesa"
        ) from error
    _Contexts.pid = os.getpid()
    free_at_exit()
    return context


def free_at_exit() -> None:
    """Has the contexts freed at the end of the interpreter, before what was registered up to now.

    mujoco and dm_control each register `eglTerminate` when they are first used or imported, and contexts that are
    freed after it print tracebacks: call this after either may have happened.
    """
    atexit.unregister(_close_at_exit)
    atexit.register(_close_at_exit)


def _close_at_exit() -> None:
    for renderer in list(_Contexts.alive):
        try:
            renderer.close()
        except Exception:  # someone terminated EGL all the same; the end of the process frees everything
            _Contexts.abandoned.append(renderer)
            renderer._gl._context = None  # what the context's destructor looks at


@functools.cache
def _gl_context_class() -> Any:
    """Returns MuJoCo's class for the chosen backend, even if mujoco was imported before the choice was made."""
    backend = os.environ.get("MUJOCO_GL", "").lower()
    if not backend and sys.platform == "linux":
        backend = choose_backend()
    if backend in ("disable", "disabled", "off", "false", "0"):
        raise ImportError("neither EGL nor OSMesa is installed")
    if backend in ("egl", "osmesa", "glfw"):
        return importlib.import_module(f"mujoco.{backend}").GLContext
    return importlib.import_module("mujoco.gl_context").GLContext


def _abandon_in_child() -> None:
    """After a fork, keeps the parent's renderers from being freed by the child: that would crash the driver."""
    _Contexts.abandoned.append((list(_Contexts.alive), dict(_Contexts.cache.__dict__)))
    _Contexts.alive.clear()
    _Contexts.cache.__dict__.clear()
    atexit.unregister(_close_at_exit)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_in_child)


@functools.lru_cache(maxsize=64)
def checker_texels(attributes: str, colors: tuple[float, ...]) -> NDArray[np.uint8]:
    """Returns the texels of a checkerboard in two colours, flat uint8, as MuJoCo's own compiler draws it.

    Args:
        attributes: The texture's XML attributes but for rgb1 and rgb2, e.g. 'width="300" height="300" mark="edge"'.
        colors: Red, green, blue of the first colour, then of the second, each in [0, 1].
    """
    first, second = (" ".join(map(str, colors[i : i + 3])) for i in (0, 3))
    texture = f'<texture name="t" type="2d" builtin="checker" rgb1="{first}" rgb2="{second}" {attributes}/>'
    model = load_mujoco().MjModel.from_xml_string(f"<mujoco><asset>{texture}</asset></mujoco>")
    return model.tex_data.copy()
