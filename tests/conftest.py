"""Fixtures shared by all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import tiny
import torch

from judgelib.models import LanguageModel


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny models only wait for each other on several threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored; tests of Ctrl-C need it heard."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def pair() -> tuple[LanguageModel, LanguageModel]:
    """A random target and a draft that agrees with it now and then."""
    target = tiny.language_model()
    return target, tiny.disturbed(target)
