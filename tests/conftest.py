import os
import signal

import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts what is to run in the background deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="module")
def on_the_cpu():
    """Bit for bit equal is what a CPU gives: on it everything is tested, what a test starts too, but for test_gpu.py.
    LDM_LITE_TEST_DEVICE=cuda takes another, to see what fails there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LDM_LITE_DEVICE", os.environ.get("LDM_LITE_TEST_DEVICE", "cpu"))
        yield


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every test, and gradients: a notebook that ran before it may have turned them off."""
    torch.manual_seed(0)
    with torch.enable_grad():
        yield
