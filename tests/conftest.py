import pytest
import tiny

import numgemma


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
