import pytest

from fleet import Fleet


@pytest.fixture(scope="session")
def fleet(tmp_path_factory):
    """Two ranks."""
    ranks = Fleet(tmp_path_factory.mktemp("fleet"))
    yield ranks
    ranks.close()
