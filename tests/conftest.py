import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every test, and gradients: a notebook that ran before it may have turned them off."""
    torch.manual_seed(0)
    with torch.enable_grad():
        yield
