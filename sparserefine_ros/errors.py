# SPDX-License-Identifier: Apache-2.0
"""Errors a caller can act on. Each message says what was expected, what came and what to do."""


class SparseRefineError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigurationError(SparseRefineError):
    """A parameter, recipe field or command line option has an impossible value."""


class BundleError(SparseRefineError):
    """A model bundle is missing, malformed, changed or inconsistent."""


class CheckpointError(SparseRefineError):
    """Weights trained elsewhere are unreadable or do not fit the network."""


class BackendError(SparseRefineError):
    """An inference engine is unknown, not installed, or refused a model."""


class DeviceMemoryError(SparseRefineError):
    """The memory of a GPU does not suffice for this frame; the dense result still holds."""


class ModelOutputError(SparseRefineError):
    """A model ran but returned something unusable: NaN, wrong shape, wrong number of classes."""


class ImageError(SparseRefineError):
    """A picture or image message cannot be used.

    Attributes:
        reason: short machine-readable key under which the node counts the rejected message.
    """

    def __init__(self, message: str, *, reason: str = "image") -> None:
        super().__init__(message)
        self.reason = reason


class DatasetError(SparseRefineError):
    """A data set on disk is incomplete or inconsistent."""


class BagError(SparseRefineError):
    """A recording cannot be read or written, or lacks what was asked of it."""
