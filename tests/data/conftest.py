"""What the tests of this room share."""

import pytest

from research.config import defaults


@pytest.fixture
def data_config(tmp_path):
    """Makes a config.data with a cache of its own: data_config('folder', path=...)."""

    def make(name, **options):
        data = defaults().data
        data.name, data.cache_dir = name, str(tmp_path / "cache")
        for key, value in options.items():
            data[key] = value
        return data

    return make
