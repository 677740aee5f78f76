"""Every backend has every kernel of the contract, with its signature."""

import inspect

import pytest

from fastcnn.kernels import BACKENDS, contract, get_backend

KERNELS = {name: f for name, f in vars(contract).items() if inspect.isfunction(f)}

pytestmark = pytest.mark.small


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_backend_has_the_signature(backend, name):
    kernel = getattr(backend, name, None)
    if kernel is None and name in contract.OPTIONAL:
        return
    assert kernel is not None, f"{backend.__name__} has no {name}"
    assert list(inspect.signature(kernel).parameters) == list(inspect.signature(KERNELS[name]).parameters)


def test_contract_names_what_the_engine_needs():
    assert len(KERNELS) == 42


def test_unknown_backend_is_named():
    with pytest.raises(ValueError, match=r"'tpu'.*cpu.*reference"):
        get_backend("tpu")
    assert set(BACKENDS) >= {"cpu", "reference"}
