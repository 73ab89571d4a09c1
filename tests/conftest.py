"""What all tests share: one thread, and a tiny Llama made on the spot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from browser import browser as browser
from browser import font_browser as font_browser
from fedsdr.model.base import BaseModel
from fedsdr.model.loading import load_base
from toy import tiny_folder as make_folder

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of width 16 and two layers in Hugging Face's format."""
    return make_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="session")
def base64(tiny_folder: Path) -> BaseModel:
    """Where exactness is claimed."""
    return load_base(tiny_folder, "float64")


@pytest.fixture(scope="session")
def base32(tiny_folder: Path) -> BaseModel:
    return load_base(tiny_folder, "float32")


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk is the bulk of a tiny run; power cuts are tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
