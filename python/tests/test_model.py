"""`load_flux_schnell` and `FluxModel.generate`: names, shapes and types of the earlier Python system."""

import gc
import os
import warnings

import numpy as np
import pytest
from conftest import SIZE

import schnell

PROMPT = "a red circle on a blue background"
SHAPE = (SIZE, SIZE, 3)


def draw(model, *args, **kwargs):
    """Without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return model.generate(*args, **kwargs)


def test_a_picture_is_floats_between_0_and_1(model):
    image = draw(model, PROMPT, seed=1)
    assert image.shape == SHAPE and image.dtype == np.float32
    assert 0 <= image.min() < image.max() <= 1


def test_a_negative_prompt_without_true_cfg_is_said_to_have_no_effect(model):
    plain = draw(model, PROMPT, seed=1)
    with pytest.warns(UserWarning, match="negative prompt"):
        image = model.generate(PROMPT, "a green square", seed=1)
    assert np.array_equal(image, plain)


def test_a_negative_prompt_with_true_cfg_has_one(model):
    image = draw(model, PROMPT, "a green square", seed=1, true_cfg_scale=2.0)
    assert not np.array_equal(image, draw(model, PROMPT, seed=1))


def test_steps_are_the_callers(model):
    draw(model, PROMPT, num_inference_steps=2, seed=1)
    assert [stage for stage in model.last.timings if stage.startswith("step")] == ["step 0", "step 1"]
    with pytest.raises(schnell.InputError, match="step"):
        model.generate(PROMPT, num_inference_steps=0)


def test_another_seed_is_another_picture(model):
    assert not np.array_equal(draw(model, PROMPT, seed=1), draw(model, PROMPT, seed=2))
    assert not np.array_equal(draw(model, PROMPT), draw(model, PROMPT))


def test_the_same_seed_is_the_same_picture(model):
    images = [draw(model, PROMPT, seed=42) for _ in range(3)]
    assert all(np.array_equal(images[0], image) for image in images)


def test_a_buffer_of_the_callers_is_filled_in_place(model):
    output = np.full(SHAPE, np.nan, np.float32)
    address = output.ctypes.data
    assert draw(model, PROMPT, output=output, seed=1) is output
    assert output.ctypes.data == address and np.array_equal(output, draw(model, PROMPT, seed=1))


def test_what_is_cut_off_a_prompt_is_said(model):
    with pytest.warns(UserWarning, match="CLIP did not see the last") as said:
        model.generate(" ".join(["circle"] * 120), seed=1)
    assert model.last.tokens_dropped["clip"] > 0 and any("T5 did not see" in str(w.message) for w in said)


def test_guidance_that_schnell_has_no_input_for_is_said(model):
    with pytest.warns(UserWarning, match="guidance"):
        image = model.generate(PROMPT, guidance_scale=3.5, seed=1)
    assert np.array_equal(image, draw(model, PROMPT, seed=1))


def test_weights_are_nf4_unless_told_otherwise(pipeline):
    bf16 = schnell.Pipeline("demo", device="emulator", width=SIZE, height=SIZE, t5_length=32, quantize="none")
    assert pipeline.device_bytes < bf16.device_bytes
    with pytest.raises(schnell.InputError, match="nf4, nf4-all, keep or none"):
        schnell.load_flux_schnell("emulator", "int4", model="demo")


def test_a_budget_is_kept_or_refused_with_both_numbers(model):
    budget = model.pipeline.device_bytes - 1
    small = schnell.load_flux_schnell("emulator", budget=budget, model="demo", width=SIZE, height=SIZE, t5_length=32)
    assert small.pipeline.device_bytes <= budget
    assert np.array_equal(draw(small, PROMPT, seed=1), draw(model, PROMPT, seed=1))
    with pytest.raises(schnell.CapacityError) as refused:
        schnell.load_flux_schnell("emulator", budget=100_000, model="demo", width=SIZE, height=SIZE)
    assert refused.value.needed_bytes > refused.value.available_bytes == 100_000


def test_what_does_not_fit_is_refused_and_the_next_picture_is_right(model):
    before = draw(model, PROMPT, seed=1)
    with pytest.raises(schnell.Error):
        model.pipeline.generate(schnell.Request(PROMPT, size=(1 << 20, 1 << 20)))
    assert np.array_equal(draw(model, PROMPT, seed=1), before)


def test_a_prompt_without_a_word_is_refused(model):
    with pytest.raises(schnell.InputError, match="prompt"):
        model.generate("  ")


def test_a_model_that_is_not_there_is_one_error():
    with pytest.raises((schnell.Error, FileNotFoundError), match="nowhere"):
        schnell.load_flux_schnell("emulator", model="/nowhere/flux")


def resident_bytes():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# 500 take minutes on the emulator: every change runs some of them.
PICTURES = int(os.environ.get("SCHNELL_PICTURES", "150"))


def test_memory_stays_flat_from_picture_to_picture():
    model = schnell.load_flux_schnell("emulator", model="demo", width=32, height=32, t5_length=16, steps=1)
    sizes = []
    for i in range(PICTURES):
        draw(model, f"{PROMPT} {i % 7}", num_inference_steps=1, seed=i % 3)
        if i % 50 == 49:
            gc.collect()
            sizes.append(resident_bytes())
    assert max(sizes[1:]) - sizes[1] < 8 << 20, sizes
