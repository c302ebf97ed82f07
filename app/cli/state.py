"""The state that commands work on: its database must be there, unless one is restored."""

from app.settings import Settings
from app.stores.sql.database import SQLITE_FILE
from app.stores.sql.engines import UnusableDatabase


def require_database(settings: Settings) -> None:
    """Refuse a data folder without a database, before one is made in it.

    Raises:
        UnusableDatabase: the data folder holds no SQLite file, and no URL names another database.
    """
    if settings.database_url is None and not (settings.data_dir / SQLITE_FILE).is_file():
        raise UnusableDatabase(f"There is no database in {settings.data_dir}.")
