"""Errors of the model layer: one sentence each, naming the file and tensor at fault."""


class ModelError(Exception):
    """Base of every error that `models` and `training` raise on purpose."""


class BundleError(ModelError):
    """A bundle's manifest or one of its files is missing, damaged or does not fit."""


class ChecksumError(BundleError):
    """A file's SHA-256 differs from the manifest's."""


class TensorMismatchError(BundleError):
    """A weights file lacks a tensor, holds an unknown one, or one of another shape."""


class InputError(ModelError):
    """An argument cannot be processed: an empty sketch, no names, a wrong shape."""


class DataError(ModelError):
    """A data set or one of the packages it is built from is missing or incomplete."""
