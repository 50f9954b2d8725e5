"""What the tests share."""

from __future__ import annotations

import pytest

from debugkit.registry import Registry, load

pytest_plugins = ["pytester"]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: builds packages or starts many processes")


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All built-in checks."""
    return load()
