import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in every test, whichever tests ran before it."""
    torch.manual_seed(0)
