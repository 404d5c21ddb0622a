"""Shapes, sizes and structure of the networks."""

import numpy as np
import pytest
import torch
from PIL import Image

from agents.lewm import PRESETS, LeWM, LeWMConfig
from lewm_gym.nn import vit
from lewm_gym.nn.conv import ConvEncoder
from lewm_gym.nn.decoder import PatchDecoder
from lewm_gym.nn.images import IMAGENET_MEAN, IMAGENET_STD, average_down, shifted, to_frames, to_network
from lewm_gym.nn.predictor import Predictor
from lewm_gym.nn.vit import ViT


def n_parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_paper_preset_has_the_published_number_of_parameters():
    model = LeWM(LeWMConfig(action_size=2))
    assert n_parameters(model) == 18_034_478
    assert n_parameters(model.encoder) == 5_501_376
    assert n_parameters(model.projector) == n_parameters(model.prediction_projector) == 792_768
    assert n_parameters(model.action_encoder) == 156_206
    assert n_parameters(model.predictor) == 10_791_360


@pytest.mark.parametrize("preset", PRESETS)
def test_encode_keeps_leading_dimensions(preset):
    model = LeWM(PRESETS[preset].model).eval()
    pixels = torch.randint(0, 256, (2, 1, 224, 224, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert model.encode(pixels).shape == (2, 1, PRESETS[preset].model.latent_size)


def test_averaging_equals_pillow_and_is_idempotent():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    small = average_down(torch.from_numpy(pixels), 56)
    expected = np.stack([np.asarray(Image.fromarray(frame).reduce(4)) for frame in pixels])
    np.testing.assert_array_equal(small.numpy(), expected)
    assert average_down(small, 56) is small


def test_averaging_refuses_what_it_cannot_average():
    with pytest.raises(ValueError, match="uint8"):
        average_down(torch.zeros(1, 224, 224, 3), 56)
    with pytest.raises(ValueError, match="shape"):
        average_down(torch.zeros(1, 3, 224, 224, dtype=torch.uint8), 56)
    with pytest.raises(ValueError, match="multiple"):
        average_down(torch.zeros(1, 100, 100, 3, dtype=torch.uint8), 56)


def test_images_are_normalised_channel_first():
    pixels = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    pixels[..., 1] = 255
    images = to_network(pixels, 8)
    assert images.shape == (1, 3, 8, 8)
    values = images[0, :, 0, 0].tolist()
    expected = [(level - m) / s for level, m, s in zip((0, 1, 0), IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    assert values == pytest.approx(expected, abs=1e-5)


def test_frames_come_back_from_images():
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    assert torch.equal(to_frames(to_network(pixels, 8)), pixels)
    assert torch.equal(to_frames(torch.full((1, 3, 4, 4), 9.0)), torch.full((1, 4, 4, 3), 255, dtype=torch.uint8))


def test_decoder_has_the_papers_sizes_and_takes_one_latent_or_several():
    decoder = PatchDecoder(192, depth=1)
    assert decoder.queries.shape[1] == 196 and decoder.out.out_features == 16 * 16 * 3
    small = PatchDecoder(8, image_size=28, grid=14, width=12, depth=1)
    assert small(torch.randn(2, 8)).shape == small(torch.randn(2, 5, 8)).shape == (2, 3, 28, 28)
    with pytest.raises(ValueError, match="divide"):
        PatchDecoder(8, image_size=30)


def test_decoder_lays_each_querys_patch_where_it_belongs():
    decoder = PatchDecoder(4, image_size=4, grid=2, width=3, depth=0)
    torch.nn.init.zeros_(decoder.out.weight)
    with torch.no_grad():
        decoder.out.weight[:, 0] = torch.arange(12.0)  # each number of a patch its own
        decoder.norm = torch.nn.Identity()
        decoder.queries.copy_(torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(1, 4, 1))
        decoder.out.bias.zero_()
    image = decoder(torch.zeros(1, 4))[0, 0]  # red: the first 2x2 numbers of each patch, row by row
    assert image.tolist() == [[0, 1, 0, 10], [2, 3, 20, 30], [0, 100, 0, 1000], [200, 300, 2000, 3000]]


def test_decoder_learns_to_draw_what_latents_say():
    torch.manual_seed(0)
    frames = torch.zeros(6, 8, 8, 3, dtype=torch.uint8)
    for i in range(6):
        frames[i, i, i] = 255
    images, latents = to_network(frames, 8), torch.eye(6)
    decoder = PatchDecoder(6, image_size=8, grid=4, width=24, depth=2)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
    for _ in range(300):
        loss = (decoder(latents) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (to_frames(decoder(latents)).int() - frames.int()).abs().max() < 64


def test_predictor_is_causal_and_starts_as_identity_of_its_actions():
    torch.manual_seed(0)
    predictor = Predictor(width=16, depth=2, heads=2, head_width=8, mlp_width=32).eval()
    latents, actions = torch.randn(4, 3, 16), torch.randn(4, 3, 16)
    # AdaLN-zero: at initialisation every gate is 0, so actions cannot matter yet
    torch.testing.assert_close(predictor(latents, actions), predictor(latents, torch.zeros_like(actions)))
    for block in predictor.blocks:
        torch.nn.init.normal_(block.modulation.weight, std=0.3)
    before = predictor(latents, actions)
    latents[:, 2] += 1.0
    actions[:, 2] += 1.0
    after = predictor(latents, actions)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_predictor_output_depends_on_own_and_earlier_actions():
    torch.manual_seed(0)
    predictor = Predictor(width=16, depth=1, heads=2, head_width=8, mlp_width=32).eval()
    torch.nn.init.normal_(predictor.blocks[0].modulation.weight, std=0.3)
    latents, actions = torch.randn(1, 3, 16), torch.randn(1, 3, 16)
    before = predictor(latents, actions)
    actions[:, 0] += 1.0
    after = predictor(latents, actions)
    assert (before - after).abs().amax(dim=(0, 2)).min() > 1e-6


def test_convolutional_encoder_reads_the_last_map_channel_first():
    torch.manual_seed(0)
    encoder = ConvEncoder(16, (4, 6, 8), 5).double()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(encoder(images), encoder.out(encoder.stages(images).flatten(1)))


def test_vit_attends_alike_in_both_precisions():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 17, 64)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    got = vit.attend(*(t.bfloat16() for t in (query, key, value)))
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.05, atol=0.02)


def test_vit_refuses_sizes_that_do_not_divide():
    with pytest.raises(ValueError, match="divide"):
        ViT(image_size=100, patch_size=14)


def test_bad_configurations_are_refused():
    bad = {"encoder": "mlp", "dropout": 1.0, "latent_size": 0, "sigreg_weight": -0.1, "decoder_weight": -1.0}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=name):
            LeWMConfig(**{name: value})


def test_shifted_clips_move_as_a_whole():
    torch.manual_seed(0)
    clips = torch.randint(0, 256, (40, 2, 8, 8, 3), dtype=torch.uint8)
    moved = shifted(clips, 2)
    assert moved.shape == clips.shape and moved.dtype == torch.uint8
    seen = set()
    for clip, other in zip(clips, moved, strict=True):
        found = [
            (dy, dx)
            for dy in range(-2, 3)
            for dx in range(-2, 3)
            if torch.equal(clip[:, 2 + dy : 6 + dy, 2 + dx : 6 + dx], other[:, 2:6, 2:6])
        ]
        assert len(found) == 1  # one shift for all frames of a clip
        seen |= set(found)
    assert len(seen) > 12  # of 25
    assert shifted(clips, 0) is clips
