"""Every setting of Convoy, declared once: name, type, bounds, default and help in one field.

A service reads its settings with `load(EngineSettings)`; this package is the only one that reads the environment.
It may be imported by every service and imports none of them.
"""

from services.settings.common import CommonSettings
from services.settings.declared import EngineSettings, OpsSettings, RunnerSettings
from services.settings.edge import EdgeSettings
from services.settings.reader import SettingsError, env_file_of, load, load_again, read_env_file, secret_names, told_about, withheld_names

__all__ = [
    "CommonSettings",
    "EdgeSettings",
    "EngineSettings",
    "OpsSettings",
    "RunnerSettings",
    "SettingsError",
    "env_file_of",
    "load",
    "load_again",
    "read_env_file",
    "secret_names",
    "told_about",
    "withheld_names",
]
