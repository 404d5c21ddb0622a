"""The rollout that planning uses: equal to stepwise prediction, current with the weights, differentiable."""

import copy

import pytest
import tiny
import torch

from lewm_gym.nn.unrolled import Unrolled


def trained(seed=0, **changes):
    """A model whose every weight and statistic matters, as after training: fresh norms and gates are trivial."""
    model = tiny.model(seed, **changes)
    with torch.no_grad():
        for part in (model.action_encoder, model.predictor, model.prediction_projector):
            for tensor in part.parameters():
                tensor += 0.3 * torch.randn_like(tensor)
        model.prediction_projector.norm.running_mean.normal_()
        model.prediction_projector.norm.running_var.uniform_(0.5, 2.0)
    return model.eval()


def stepwise(model, context, actions, past=None):
    """Plain: the whole window predicted anew at each step, for one environment and each candidate."""
    n = context.shape[1]
    frames = context.expand(actions.shape[1], -1, -1)
    blocks = actions[0] if past is None else torch.cat([past.expand(actions.shape[1], -1, -1), actions[0]], dim=1)
    for end in range(n, n + actions.shape[2]):
        window = slice(max(0, end - model.config.context), end)
        frames = torch.cat([frames, model.predict(frames[:, window], blocks[:, window])[:, -1:]], dim=1)
    return frames[:, n:].unsqueeze(0)


@pytest.mark.parametrize("context", [1, 2, 3, 4])
@pytest.mark.parametrize("horizon", [1, 3, 6])
def test_rollout_equals_stepwise_prediction_to_rounding(context, horizon):
    model = trained(context=context, predictor_depth=3, predictor_width=12 if context == 4 else 0)
    exact = copy.deepcopy(model).double()
    for given in range(1, context + 1):
        latents, actions = torch.randn(1, given, 8), torch.randn(1, 5, horizon, 10)
        past = torch.randn(1, given - 1, 10) if given > 1 else None
        got = model.rollout(latents, actions, past)
        with torch.no_grad():
            expected = stepwise(exact, latents.double(), actions.double(), None if past is None else past.double())
        torch.testing.assert_close(got, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("context", [1, 2, 3, 4])
@pytest.mark.parametrize("horizon", [1, 3, 6])
def test_what_is_exported_equals_the_rollout_to_rounding(context, horizon):
    changes = {"predictor_width": 12, "residual": True} if context == 4 else {}
    model = trained(context=context, predictor_depth=3, **changes)
    latent, actions = torch.randn(1, 8), torch.randn(1, 5, horizon, 10)
    for factor in (1, 30):  # then scores are far apart: exp of one would overflow
        with torch.no_grad():
            for block in model.predictor.blocks:
                block.attention.query_key_value.weight.mul_(factor)
        unrolled = Unrolled(model._prepared(torch.float32))(latent, actions[0])
        torch.testing.assert_close(unrolled, model.rollout(latent[None], actions)[0], rtol=1e-4, atol=1e-4 * factor)


def test_rollout_follows_the_weights_and_copies_them_no_more_often_than_they_change():
    model, other = trained(0), trained(1)
    start, actions = torch.randn(1, 1, 8), torch.randn(1, 4, 5, 10)
    before = model.rollout(start, actions)
    prepared = model._prepared(torch.float32)
    model.rollout(start, actions)
    assert model._prepared(torch.float32) is prepared
    twin = copy.deepcopy(model)
    model.load_state_dict(other.state_dict())
    torch.testing.assert_close(model.rollout(start, actions), other.rollout(start, actions))
    torch.testing.assert_close(twin.rollout(start, actions), before)
    model.prediction_projector.linear_out = torch.nn.Linear(16, 8)  # another module in its place
    with torch.no_grad():
        torch.testing.assert_close(model.rollout(start, actions), stepwise(model, start, actions), rtol=1e-4, atol=1e-5)


def test_gradient_reaches_the_actions_and_not_the_weights():
    model = trained(predictor_width=12)
    start, actions = torch.randn(1, 1, 8), torch.randn(1, 4, 5, 10, requires_grad=True)
    with torch.inference_mode():
        model.rollout(start, actions)  # what is prepared in here must serve out there
    model.rollout(start, actions)[:, :, -1].square().sum().backward()
    ours = actions.grad.clone()
    actions.grad = None
    stepwise(model, start, actions)[:, :, -1].square().sum().backward()
    torch.testing.assert_close(ours, actions.grad, rtol=1e-3, atol=1e-5)
    model.zero_grad()
    model.rollout(start, actions).sum().backward()
    assert all(weight.grad is None for weight in model.parameters())


def test_autocast_chooses_the_precision_and_latents_stay_float32():
    model = trained()
    start, actions = torch.randn(1, 1, 8), torch.randn(1, 64, 5, 10)
    exact = model.rollout(start, actions)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.rollout(start, actions)
    assert rounded.dtype == torch.float32
    error = (rounded - exact).square().mean().sqrt() / exact.std()
    assert 1e-5 < error < 0.1


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        tiny.model().train().rollout(torch.randn(1, 1, 8), torch.randn(1, 2, 5, 10))
