"""From a bundle folder and a data folder to running services; the slow part of the start."""

from app.api.deps import Platform
from app.api.services import Services
from app.settings import Settings


def build_services(settings: Settings, platform: Platform) -> Services:
    """Load the bundle and open the stores.

    Raises:
        models.errors.ModelError: the bundle is damaged.
    """
    raise NotImplementedError
