import os

import pytest
import tiny
from hypothesis import settings
from timm_here import make_importable

import numgemma

make_importable()  # before anything asks Transformers what there is

# the same examples in every run of the pipeline, new ones on a developer's machine
settings.register_profile("pipeline", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("pipeline")


@pytest.fixture(scope="session", autouse=True)
def floors_stay_here(tmp_path_factory):
    """The cache of noise floors is the run's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMGEMMA_CACHE", str(tmp_path_factory.mktemp("floors")))
        yield


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A random checkpoint directory of each shape."""
    base = tmp_path_factory.mktemp("checkpoints")
    return {name: tiny.write(base / name, raw) for name, raw in tiny.VARIANTS.items()}


@pytest.fixture(scope="session")
def models(folders):
    """Those checkpoints, opened in float32."""
    return {name: numgemma.load(folder) for name, folder in folders.items()}


@pytest.fixture(scope="session")
def multimodal_folders(tmp_path_factory):
    """A random checkpoint directory of each shape that has towers."""
    base = tmp_path_factory.mktemp("multimodal")
    return {name: tiny.write(base / name, raw) for name, raw in tiny.MULTIMODAL.items()}
