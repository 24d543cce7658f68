"""The bundled model on the emulator: what is tested is what users call, with nothing in its place."""

import pytest

import schnell

SIZE = 64


@pytest.fixture(scope="session")
def model():
    return schnell.load_flux_schnell("emulator", model="demo", width=SIZE, height=SIZE, t5_length=32)


@pytest.fixture(scope="session")
def pipeline(model):
    return model.pipeline
