"""`Pipeline`: where pixels go, threads, progress, stopping, errors."""

import ctypes
import os
import signal
import threading
import time

import numpy as np
import pytest
from conftest import SIZE

import schnell

REQUEST = schnell.Request("a red circle on a blue background", seed=7)


@pytest.fixture(scope="module")
def floats(pipeline):
    output = np.empty((SIZE, SIZE, 3), np.float32)
    pipeline.generate(REQUEST, output)
    return output


@pytest.fixture(scope="module")
def image(pipeline):
    return pipeline.generate(REQUEST)


def rounded(floats):
    return np.rint(floats * np.float32(255)).astype(np.uint8)


def test_bytes_are_rounded_floats(image, floats):
    assert np.array_equal(np.frombuffer(image.rgb, np.uint8).reshape(SIZE, SIZE, 3), rounded(floats))


def test_every_kind_of_buffer_gets_the_same_picture(pipeline, floats):
    planar = np.empty((3, SIZE, SIZE), np.float32)
    pipeline.generate(REQUEST, planar)
    assert np.array_equal(planar.transpose(1, 2, 0), floats)
    batch = np.empty((1, 3, SIZE, SIZE), np.uint8)
    pipeline.generate(REQUEST, batch)
    assert np.array_equal(batch[0].transpose(1, 2, 0), rounded(floats))
    flat = bytearray(SIZE * SIZE * 3)
    pipeline.generate(REQUEST, memoryview(flat))
    assert bytes(flat) == rounded(floats).tobytes()


def test_a_tensor_on_the_cpu_is_filled_through_its_numpy(pipeline, floats):
    class Tensor:
        """As torch.Tensor: neither a buffer nor on a GPU, but with an array that shares its memory."""

        def __init__(self):
            self.array = np.empty((SIZE, SIZE, 3), np.float32)

        def numpy(self):
            return self.array

    tensor = Tensor()
    pipeline.generate(REQUEST, tensor)
    assert np.array_equal(tensor.array, floats)


class OnDevice:
    """As a CUDA tensor; an address on the emulator is one of this process."""

    def __init__(self, shape, typestr, strides=None, read_only=False):
        self.memory = (ctypes.c_uint8 * (int(np.prod(shape)) * np.dtype(typestr).itemsize + 256))()
        address = (ctypes.addressof(self.memory) + 255) // 256 * 256
        self.array = np.frombuffer(self.memory, np.dtype(typestr), int(np.prod(shape)), address - ctypes.addressof(self.memory))
        self.array = self.array.reshape(shape)
        self.__cuda_array_interface__ = {
            "data": (address, read_only), "shape": shape, "typestr": typestr, "strides": strides, "version": 3,
        }


def test_a_tensor_on_the_device_is_filled_without_a_copy(pipeline, floats):
    tensor = OnDevice((SIZE, SIZE, 3), "<f4")
    image = pipeline.generate(REQUEST, tensor)
    assert np.array_equal(tensor.array, floats)
    tensor = OnDevice((3, SIZE, SIZE), "|u1", strides=(SIZE * SIZE, SIZE, 1))
    pipeline.generate(REQUEST, tensor)
    assert np.array_equal(tensor.array.transpose(1, 2, 0), rounded(floats))
    with pytest.raises(schnell.InputError, match="in the caller's output"):
        image.save("nowhere.png")


class Exported:
    """An array that is known by DLPack alone, `device` being whose memory it says to have: as its capsule of before version 1 has it."""

    class Tensor(ctypes.Structure):
        _fields_ = [
            ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32), ("ndim", ctypes.c_int32),
            ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16), ("shape", ctypes.POINTER(ctypes.c_int64)),
            ("strides", ctypes.POINTER(ctypes.c_int64)), ("byte_offset", ctypes.c_uint64), ("context", ctypes.c_void_p),
            ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        ]

    def __init__(self, array, device=2):
        self.array, self.device, self.deleted = array, device, 0

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, **_):
        array = self.array
        sides = lambda values: (ctypes.c_int64 * array.ndim)(*values)
        self.keep = sides(array.shape), sides(stride // array.itemsize for stride in array.strides)

        def delete(_):
            self.deleted += 1

        code = {"f": 2, "u": 1}[array.dtype.kind]
        # The offset is counted from the data.
        self.tensor = Exported.Tensor(
            array.ctypes.data - 64, self.device, 0, array.ndim, code, array.itemsize * 8, 1, *self.keep, 64, None,
            Exported.Tensor._fields_[-1][1](delete),
        )
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.tensor), b"dltensor", None)


class OfNumpy:
    """An array of numpy's, known by DLPack alone."""

    def __init__(self, array):
        self.array = array
        self.__dlpack__, self.__dlpack_device__ = array.__dlpack__, array.__dlpack_device__


def test_a_tensor_of_dlpack_is_filled_and_let_go(pipeline, floats):
    array = np.empty((SIZE, SIZE, 3), np.float32)
    pipeline.generate(REQUEST, OfNumpy(array))
    assert np.array_equal(array, floats)
    planar = Exported(np.empty((3, SIZE, SIZE), np.uint8), device=1)
    pipeline.generate(REQUEST, planar)
    assert np.array_equal(planar.array.transpose(1, 2, 0), rounded(floats)) and planar.deleted == 1
    # As from a GPU, without a copy; an address on the emulator is one of this process.
    on_device = Exported(OnDevice((SIZE, SIZE, 3), "<f4").array)
    with pytest.raises(schnell.InputError, match="in the caller's output"):
        pipeline.generate(REQUEST, on_device).save("nowhere.png")
    assert np.array_equal(on_device.array, floats) and on_device.deleted == 1


def read_only():
    array = np.empty((SIZE, SIZE, 3), np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("output", "said"),
    [
        (lambda: Exported(np.empty((SIZE, SIZE, 3), np.float64)), "uint8 or float32 are written"),
        (lambda: Exported(np.empty((SIZE, SIZE, 3), np.float32), device=8), "device type 8"),
        (lambda: Exported(np.empty((SIZE, SIZE, 6), np.float32)[:, :, ::2]), "one behind the other"),
        (lambda: Exported(np.empty((SIZE, SIZE, 4), np.float32)), "its shape is"),
        (lambda: OfNumpy(read_only()), "read-?only"),
        (lambda: np.empty((SIZE, SIZE, 4), np.float32), "its shape is"),
        (lambda: np.empty((SIZE, SIZE + 1, 3), np.float32), "a buffer of"),
        (lambda: np.empty((SIZE, SIZE, 3), np.float64), "uint8 or float32"),
        (lambda: np.empty((SIZE, SIZE, 6), np.float32)[:, :, ::2], "one behind the other"),
        (lambda: bytes(SIZE * SIZE * 3), "read-only"),
        (lambda: object(), "uint8 or float32"),
        (lambda: OnDevice((SIZE, SIZE, 3), "<f8"), "elements are <f8"),
        (lambda: OnDevice((SIZE, SIZE, 3), "<f4", read_only=True), "read-only"),
        (lambda: OnDevice((SIZE, SIZE, 3), "<f4", strides=(SIZE * 16, 16, 4)), "one behind the other"),
    ],
)
def test_what_cannot_be_filled_is_refused(pipeline, output, said):
    with pytest.raises(schnell.InputError, match=said):
        pipeline.generate(REQUEST, output())


def test_what_is_known_of_a_picture_is_with_it(image, tmp_path):
    assert (image.width, image.height, image.estimate, image.warnings) == (SIZE, SIZE, None, [])
    assert image.notes["seed"] == "7" and "vae" in image.timings and image.total_ms > 0
    image.save(tmp_path / "circle.png")
    assert (tmp_path / "circle.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(schnell.InputError):
        image.save(tmp_path / "circle.bmp")


def test_progress_is_told_and_what_it_says_stops(pipeline, image):
    told = []
    pipeline.generate(REQUEST, progress=lambda *what: told.append(what))
    assert ("step", 0, pipeline.steps) in told and told[-1][0] == "done"
    with pytest.raises(schnell.Stopped):
        pipeline.generate(REQUEST, progress=lambda stage, done, total: stage != "step")
    with pytest.raises(ZeroDivisionError):
        pipeline.generate(REQUEST, progress=lambda *_: 1 / 0)
    assert pipeline.generate(REQUEST).rgb == image.rgb


def test_control_c_stops_within_a_step(pipeline, image):
    # Shells have what runs in their background ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            pipeline.generate(REQUEST, progress=lambda stage, *_: os.kill(os.getpid(), signal.SIGINT) if stage == "step" else None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pipeline.generate(REQUEST).rgb == image.rgb


def test_other_threads_run_while_a_picture_is_drawn(pipeline):
    ticks, done = [], threading.Event()

    def count():
        while not done.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        # A busy machine may not let the thread run; one that holds the interpreter never does.
        for _ in range(5):
            begun = time.monotonic()
            pipeline.generate(REQUEST)
            ended = time.monotonic()
            between = [begun] + [tick for tick in ticks if begun < tick < ended] + [ended]
            longest = max(after - before for before, after in zip(between, between[1:]))
            if longest < (ended - begun) / 2:
                return
    finally:
        done.set()
        thread.join()
    raise AssertionError((longest, ended - begun))


def test_two_threads_draw_what_one_does(pipeline, image):
    other = pipeline.generate(schnell.Request("a blue square", seed=3)).rgb
    drawn = {}

    def draw(name, request):
        drawn[name] = [pipeline.generate(request).rgb for _ in range(3)]

    requests = {"circle": REQUEST, "square": schnell.Request("a blue square", seed=3)}
    threads = [threading.Thread(target=draw, args=item) for item in requests.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(drawn["circle"]) == {image.rgb} and set(drawn["square"]) == {other}


def test_errors_are_of_their_kind(pipeline):
    assert not pipeline.is_poisoned and pipeline.recover() is None
    for kind in ["Input", "Weights", "Capacity", "Unsupported", "Device", "Poisoned", "Deadline", "NotFinite", "Mismatch", "Network", "Internal"]:
        assert issubclass(getattr(schnell, f"{kind}Error"), schnell.Error)
    with pytest.raises(schnell.InputError, match="auto, cuda:N or emulator"):
        schnell.Pipeline(device="tpu")
    with pytest.raises(schnell.InputError, match="fail, fewer_steps or estimate"):
        schnell.Request("a fox", late="never")
    with pytest.raises(schnell.InputError, match="seconds from now"):
        schnell.Request("a fox", deadline=-1.0)
    with pytest.raises(schnell.UnsupportedError):
        schnell.Pipeline(device="cuda:0")


def test_deadlines_are_held_against_what_pictures_took(tmp_path):
    pipeline = schnell.Pipeline(
        device="emulator", width=SIZE, height=SIZE, t5_length=32, calibrate=tmp_path / "times.json"
    )
    assert pipeline.expected(REQUEST) > 0
    with pytest.raises(schnell.DeadlineError) as late:
        pipeline.generate(schnell.Request("a red circle", deadline=1e-4))
    assert late.value.needed_s > late.value.deadline_s == pytest.approx(1e-4)


def test_the_stubs_know_every_name():
    stubs = (os.path.dirname(schnell.__file__) + "/_schnell.pyi")
    with open(stubs) as file:
        text = file.read()
    for name in schnell.__all__:
        value = getattr(schnell, name)
        if getattr(value, "__module__", "").startswith("schnell") and isinstance(value, type) and name != "FluxModel":
            assert f"class {name}" in text, name
            for member in vars(value):
                if not member.startswith("_"):
                    assert f"def {member}(" in text, f"{name}.{member}"
