"""OGBench-Cube: its physics against OGBench's own environment, success, bad states, the models and their cache."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collect.policies import make_policy
from collect.policies.cube import POLICIES, MarkovPolicy, OraclePolicy, PlanPolicy, WanderingPolicy
from envs.cube import CubeEnv, models, simulation
from envs.cube.simulation import CUBE_POSITION, CUBE_QUATERNION, WARM_START, Simulation, quaternion_yaw

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("mujoco", "dm_control", "ogbench", "fast_simplification"))),
    reason='needs pip install "lewm-gym[mujoco]"',
)


def make(**kwargs: Any) -> CubeEnv:
    """Returns an environment that draws nothing."""
    env = CubeEnv(terminate_on_success=False, **kwargs)
    env.render_state = lambda state: np.zeros((224, 224, 3), np.uint8)  # type: ignore[method-assign]
    return env


def ogbench_env() -> Any:
    """Returns OGBench's environment as its users make it."""
    from ogbench.manipspace.envs.cube_env import CubeEnv as OGBenchCubeEnv

    return OGBenchCubeEnv(env_type="single", mode="data_collection", terminate_at_goal=False)


def state_of(ogbench: Any) -> np.ndarray:
    data = ogbench.unwrapped._data
    return np.concatenate([data.qpos, data.qvel, data.qacc_warmstart])


def test_reference_rules_repeat_ogbench_bit_for_bit() -> None:
    ogbench, ours = ogbench_env(), make(reference_rules=True)
    ogbench.reset(seed=0)
    ours.reset(options={"state": state_of(ogbench)})
    rng = np.random.default_rng(0)
    for step in range(60):
        action = rng.uniform(-1, 1, 5).astype(np.float32)
        ogbench.step(action)
        *_, info = ours.step(action)
        assert np.array_equal(info["state"], state_of(ogbench)), step


def test_default_rules_stay_close_to_ogbench() -> None:
    """Reading the gripper's pose 2 ms later moves the arm by millimetres."""
    ogbench, ours = ogbench_env(), make()
    ogbench.reset(seed=0)
    ours.reset(options={"state": state_of(ogbench)})
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, 5).astype(np.float32)
        ogbench.step(action)
        *_, info = ours.step(action)
    assert np.abs(info["state"][:6] - state_of(ogbench)[:6]).max() < 0.05


def test_starts_are_distributed_as_in_ogbench() -> None:
    env, simulation = make(), Simulation()
    states = np.stack([simulation.sample_state(np.random.default_rng(i)) for i in range(60)])
    cubes = states[:, CUBE_POSITION]
    assert (cubes >= (0.3, -0.3, 0.02)).all() and (cubes <= (0.55, 0.3, 0.02)).all()
    assert (np.ptp(cubes, axis=0)[:2] > (0.2, 0.5)).all()
    for state in states:
        env.check_state(state)
        effector = env.quantities(state)["effector_position"]
        assert ((effector >= (0.24, -0.36, 0.19)) & (effector <= (0.61, 0.36, 0.36))).all()


@pytest.mark.parametrize(("offset", "reached"), [((0.039, 0, 0), True), ((0, -0.041, 0), False), ((0, 0, 0.03), True)])
def test_success_is_the_cube_within_four_centimetres(offset: tuple[float, ...], reached: bool) -> None:
    env = make()
    goal = Simulation().sample_state(np.random.default_rng(0))
    state = Simulation().sample_state(np.random.default_rng(1))  # another pose of the arm
    state[CUBE_POSITION] = goal[CUBE_POSITION] + offset
    assert env.is_goal(state, goal) is reached
    _, info = env.reset(options={"state": state, "goal_state": goal})
    assert info["is_success"] is reached


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (16, -0.02, "position"),  # below the table
        (16, 0.006, "14 mm inside the table"),
        (45, 1e300, "warm start"),
        (14, 2.0, "position"),
        (17, 3.0, "norm 1"),
        (1, 7.0, "shoulder_lift"),
        (6, 2.0, "driver"),
        (30, 1e4, "velocities"),
    ],
)
def test_impossible_states_are_refused(index: int, value: float, message: str) -> None:
    env = make()
    state = Simulation().sample_state(np.random.default_rng(0))
    state[index] = value
    with pytest.raises(ValueError, match=message):
        env.reset(options={"state": state})


def test_a_cube_inside_the_gripper_is_refused() -> None:
    env = make()
    state = Simulation().sample_state(np.random.default_rng(0))
    state[CUBE_POSITION] = env.quantities(state)["effector_position"] + (0.0, 0.0, 0.09)
    with pytest.raises(ValueError, match="overlap by"):
        env.reset(options={"goal_state": state})


def test_bodies_are_kept_apart_under_the_variations_of_the_same_reset() -> None:
    env = make()
    state = Simulation().sample_state(np.random.default_rng(0))
    state[CUBE_POSITION] = env.quantities(state)["effector_position"] + (0.0, 0.0, 0.058)
    env.reset(options={"state": state, "variations": {"cube_size": 0.01}})
    with pytest.raises(ValueError, match="overlap by"):
        env.reset(options={"state": state, "variations": {"cube_size": 0.03}})


def test_the_largest_cube_can_begin_where_the_default_one_lies() -> None:
    env = make()
    _, info = env.reset(seed=0)
    for _ in range(5):  # it settles 0.04 mm lower
        *_, info = env.step(np.zeros(5, np.float32))
    env.reset(options={"state": info["state"], "variations": {"cube_size": 0.03}})


def test_a_resized_cube_weighs_what_the_compiler_says() -> None:
    import mujoco
    from ogbench.manipspace import mjcf_utils

    original = models.describe_cube()
    spec = mujoco.MjSpec.from_string(
        mjcf_utils.to_string(original.mjcf_model), assets=mjcf_utils.get_assets(original.mjcf_model)
    )
    spec.geom("object_0").size = [0.03] * 3
    compiled, ours = spec.compile(), models.physics_model(0.03)
    body, geom = ours.body("object_0").id, ours.geom("object_0").id
    for field in ("body_mass", "body_inertia", "body_invweight0", "geom_size", "geom_rbound", "geom_aabb"):
        index = geom if field.startswith("geom") else body
        assert np.allclose(getattr(ours, field)[index], getattr(compiled, field)[index], rtol=1e-9), field
    assert np.allclose(ours.dof_invweight0, compiled.dof_invweight0, rtol=1e-6)
    assert models.physics_model().body("object_0").mass[0] == pytest.approx(1240 * 0.04**3)


def carried(policy: OraclePolicy, steps: int) -> list[tuple[int, float]]:
    """Plays a policy; returns, each time it draws a target, the step and how far (m) the cube is from the last one."""
    env = make()
    _, info = policy.begin(env, np.random.default_rng(3))
    changes, target = [], policy._target[0]
    for step in range(steps):
        action = policy.act(info)
        if policy._target[0] is not target:
            changes.append((step, float(np.linalg.norm(info["state"][CUBE_POSITION] - target))))
            target = policy._target[0]
        *_, info = env.step(action)
    return changes


def test_the_markov_oracle_moves_the_cube_to_target_after_target() -> None:
    distances = [distance for _, distance in carried(MarkovPolicy(noise=0.0), 200)]
    assert len(distances) >= 2 and max(distances) < 0.04


def test_the_plan_oracle_takes_about_88_steps_to_each_target() -> None:
    (step, distance), *_ = carried(PlanPolicy(noise=0.0), 120)
    assert 65 <= step <= 111 and distance < 0.04  # 11 segments of 8 steps, each keyframe moved by up to a fifth


def test_a_fixed_target_is_planned_for_again() -> None:
    policy = POLICIES["plan_fixed_target"](0.0)
    env, plans = make(), []
    _, info = policy.begin(env, np.random.default_rng(3))
    for _ in range(130):
        action = policy.act(info)
        if not any(policy._oracle._plan is plan for plan in plans):
            plans.append(policy._oracle._plan)
            targets = policy._target[0]
        *_, info = env.step(action)
        assert policy._target[0] is targets
    assert len(plans) == 2


def test_the_plan_is_ogbenchs_own() -> None:
    """At the first step, when nothing is late yet in OGBench's environment: same target, same draws, same action."""
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

    policy, env = PlanPolicy(), make()
    _, info = policy.begin(env, np.random.default_rng(5))
    rng = np.random.default_rng(5)
    rng.bit_generator.state = policy._rng.bit_generator.state
    seed = int(rng.integers(2**32))

    ogbench = ogbench_env()
    _, seen = ogbench.reset(seed=0)
    ogbench._data.qpos = info["state"][:21]
    ogbench._data.qvel = 0.0
    ogbench.pre_step()
    import mujoco

    mujoco.mj_forward(ogbench._model, ogbench._data)
    seen = ogbench.get_reset_info()
    seen["privileged/target_block_pos"] = policy._target[0]
    seen["privileged/target_block_yaw"] = np.array([policy._target[1]])
    oracle = CubePlanOracle(env=ogbench, noise=0.1, noise_smoothing=0.5)
    np.random.seed(seed)
    oracle.reset(None, seen)
    expected = oracle.select_action(None, seen)
    assert np.allclose(policy.act(info), expected, atol=1e-6)
    assert np.allclose(policy._oracle._plan, oracle._plan, atol=1e-9)


@pytest.mark.parametrize("name", ["plan", "plan_fixed_target", "markov", "wandering", "markov:p_random_action=0.5"])
def test_actions_are_a_function_of_recorded_states_and_the_random_stream(name: str) -> None:
    def play(states: list[np.ndarray] | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
        env, policy = make(), make_policy("cube", name)
        _, info = policy.begin(env, np.random.default_rng(11))
        actions, seen = [], [info["state"]]
        for step in range(110):
            actions.append(policy.act({"state": seen[step] if states is None else states[step]}))
            if states is None:
                seen.append(env.step(actions[-1])[-1]["state"])
        return actions, seen

    actions, states = play(None)
    np.random.seed(1)  # the oracles draw from the global generator
    before = np.random.get_state()[1].copy()
    again, _ = play(states)
    assert all(np.array_equal(a, b) for a, b in zip(actions, again, strict=True))
    assert np.array_equal(np.random.get_state()[1], before)


def test_p_random_action_is_the_share_of_random_actions() -> None:
    env, policy = make(), make_policy("cube", "markov:p_random_action=1")
    _, info = policy.begin(env, np.random.default_rng(0))
    actions = np.stack([policy.act(info) for _ in range(100)])
    assert abs(actions.mean()) < 0.1 and (np.abs(actions) < 1).all()  # the oracle's own are mostly at the bounds


@pytest.mark.parametrize("policy", [PlanPolicy, MarkovPolicy])
def test_oracles_take_a_noise_level(policy: type[OraclePolicy]) -> None:
    assert policy().noise == 0.1
    with pytest.raises(ValueError, match="noise"):
        policy(noise=-0.1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("markov:p_random=0.1", "no option 'p_random'; it takes: p_random_action"),
        ("markov:p_random_action=often", "must be a number"),
        ("markov:p_random_action=2", "within"),
        ("random:p=1", "it takes none"),
        ("oracle", "expected one of: plan, plan_fixed_target, markov, wandering, random"),
    ],
)
def test_unknown_policies_and_options_are_refused(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy("cube", name)


def test_the_wandering_policy_closes_its_gripper_on_nothing() -> None:
    env = make()
    nothing = 0
    for episode in range(3):
        policy = WanderingPolicy()
        _, info = policy.begin(env, np.random.default_rng([7, episode]))
        for _ in range(policy.max_steps):
            *_, info = env.step(policy.act(info))
            nothing += env.quantities(info["state"])["gripper_opening"][0] > 0.85
    assert nothing > 10  # the oracle: never in 8 episodes; a gripper that holds the cube is at 0.56


def test_quaternion_yaw_agrees_with_ogbench() -> None:
    from ogbench.manipspace import lie

    for angle in (-3.0, -0.4, 0.0, 2.2):
        assert quaternion_yaw(lie.SO3.from_z_radians(angle).wxyz) == pytest.approx(angle)


@pytest.mark.gl
def test_only_positions_are_seen() -> None:
    env = CubeEnv()
    state = Simulation().sample_state(np.random.default_rng(0))
    frame = env.render_state(state)
    moving = state.copy()
    moving[21:] = 1.0
    assert np.array_equal(env.render_state(moving), frame)
    state[CUBE_QUATERNION] = (np.cos(0.2), 0, 0, np.sin(0.2))
    assert not np.array_equal(env.render_state(state), frame)


def test_constants_are_those_of_the_installed_ogbench() -> None:
    ogbench = ogbench_env()
    assert np.array_equal(simulation.ACTION_RANGE, ogbench.action_high)
    assert np.array_equal(simulation.WORKSPACE, ogbench._workspace_bounds)
    assert np.array_equal(simulation.ARM_STARTS, ogbench._arm_sampling_bounds)
    assert np.array_equal(simulation.CUBE_STARTS, ogbench._object_sampling_bounds)
    assert np.array_equal(simulation.CUBE_STARTS, ogbench._target_sampling_bounds)
    assert np.allclose(simulation._HOME, ogbench._home_qpos, rtol=0, atol=0)
    assert simulation.PHYSICS_STEPS == ogbench._n_steps
    assert simulation.CONTROL_TIMESTEP == ogbench._control_timestep


def test_a_damaged_or_unwritable_cache_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mujoco

    made: list[int] = []

    def small_models() -> dict[str, Any]:
        made.append(1)
        model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
        return dict.fromkeys(("physics", "arm", "picture"), model)

    read = models._models.__wrapped__  # not the one that remembers
    monkeypatch.setattr(models, "_make_models", small_models)
    monkeypatch.setenv("LEWM_GYM_CACHE", str(tmp_path / "cache"))
    for _ in range(2):
        assert read()["arm"].ngeom == 1
    assert len(made) == 1  # the second came from the cache
    files = sorted((tmp_path / "cache").rglob("*.mjb"))
    assert len(files) == 3
    content = bytearray(files[0].read_bytes())
    content[100] ^= 1
    files[0].write_bytes(content)
    assert read()["arm"].ngeom == 1 and len(made) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEWM_GYM_CACHE", str(tmp_path / "file"))  # not a folder
    assert read()["arm"].ngeom == 1 and len(made) == 3


def test_decimation_keeps_the_shape_with_few_faces() -> None:
    """A finely tessellated cylinder stays within 3 mm of itself."""
    from envs.cube.mesh_decimation import decimate

    turns, rows = 64, 40
    angle, height = np.meshgrid(np.linspace(0, 2 * np.pi, turns, endpoint=False), np.linspace(0, 0.4, rows))
    vertices = np.stack([0.05 * np.cos(angle), 0.05 * np.sin(angle), height], -1).reshape(-1, 3)
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(turns), indexing="ij")
    a, b, c, d = i * turns + j, i * turns + (j + 1) % turns, (i + 1) * turns + j, (i + 1) * turns + (j + 1) % turns
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([b, d, c], -1).reshape(-1, 3)])
    few, fewer_faces = decimate(vertices, faces, models.DECIMATION)
    assert len(fewer_faces) < 0.15 * len(faces)
    assert np.abs(np.hypot(few[:, 0], few[:, 1]) - 0.05).max() < 0.003
    assert np.ptp(few[:, 2]) == pytest.approx(0.4, abs=0.003)


def test_the_warm_start_is_part_of_the_state() -> None:
    """What the test of exact restore would miss if the solver never needed it."""
    env, policy = make(), MarkovPolicy(noise=0.0)
    _, info = policy.begin(env, np.random.default_rng(3))
    differs = False
    for _ in range(60):
        action = policy.act(info)
        cold = info["state"].copy()
        cold[WARM_START] = 0.0
        other, _ = env.simulation.step(cold, action)
        *_, info = env.step(action)
        differs |= not np.array_equal(other[:41], info["state"][:41])
    assert differs
